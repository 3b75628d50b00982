"""Explicit-state model of the store's rules (protocol, parts A, B, D), explored over every interleaving up to the bounds of a scope.

Attempts 1..A run one after another under one operator. A superseded attempt does not stop: it is a zombie that may still save, commit, tidy up, and carry out a
deletion order that it was given before. One actor stands for the whole gang of one life of an attempt. What a scope adds to that:

  ranks     each rank's manifest is written by itself, after its own chunks; the commit record names them all (B3)
  open      so many saves of an attempt may be open at a time (A8)
  lives     the operator's database is restored, so that an attempt's number is given to a second gang (A4)
  forgets   the operator's database is restored between attempts: what it knew and had expired is forgotten (A4, D2)
  resends   a commit record whose answer was lost arrives once more, at any later time (D2)
  branches  another job builds on a checkpoint here (D6)
  tidy      saves without a commit are swept (D4)
  exact     False: the store accepts `If-None-Match` and overwrites (B8)
  wrong     from this step on weights are NaN, and every save says so (C4)
  odd       from this step on copies of one state differ in attempt 1, and in whatever continues what it saves then (J4)
  nodes     a rank's part of a save may be whole on its node: whoever returns there, once the next attempt is on, brings it into the store (E6)
  gives_up  a save that did not fit is given up, and what lies in the store of it is taken away (D4)
  apart     with `nodes`: others act between the finisher's last look and its commit record
  late      a superseded gang carries out deletions that it was ordered before (False: it looks for claims first, A5, and is not overtaken after it has looked)

With `forgets` or `lives`, `late` must be False. Found by this model: an operator that was restored from a backup lets an attempt continue what it had given up
before; if a zombie that has looked for claims just before then deletes that checkpoint, and every newer one is unreadable, nothing usable is left. The job
stalls with that reason; it never starts from nothing (C1).

Two rules are kept in the code although this model needs neither: the base of an open save waits (D5), for a gang never expires the base of its own newest save;
and abandoned saves are buried before they are swept (D4), for a gang never commits what it has abandoned. They are for commits that arrive late from a
coordinator that died (E5), which is not modelled.

In every state

  SAFE    each usable commit (on the lineage of the newest claim, not expired, without a tombstone) has all its manifests and chunks
  ALIVE   an attempt that continued something always has a usable commit
  ONE     no two gangs believe that they are the same attempt
  SOUND   what a start would continue is never given up: no checkpoint is, of which less is known to be wrong than of all that are left (C5)
  CLEAN   nobody continues a checkpoint whose copies differ while a sound one is left (J4); not with `forgets` or `branches`, which bring back what was given up
  BRANCH  what another job has claimed to build on is committed and whole
  KEPT    what lies whole on nodes, and can still be finished, is still there (E6)
  CLOSED  what a claim has excluded, or a tombstone has buried, is finished no more (E6); not with `apart`: a finisher that is late then is harmless (A7)

Each rule can be left out, to see whether it is needed.
"""

import random
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

CONTENT = {1: "ab", 2: "bc", 3: "ac", 4: "bd", 5: "ad"}
"""Of the state at each step: 'a' goes and comes back, which is what makes re-used keys dangerous."""

Commit = tuple[int, int]
"""(attempt, step): one save is made for each step, so a step here is a save of the protocol."""
Key = tuple[int, int, str]
"""A chunk: the attempt and step that it lies under, and its content."""


@dataclass(frozen=True)
class Scope:
    attempts: int = 2
    steps: int = 3
    orders: int = 1
    ranks: int = 1
    open: int = 1
    lives: int = 1
    forgets: bool = False
    late: bool = True
    resends: int = 0
    branches: int = 0
    tidy: bool = False
    exact: bool = True
    nodes: bool = False
    gives_up: bool = False
    apart: bool = False
    wrong: int = 0
    """From this step on weights are NaN; 0: never."""
    odd: int = 0
    """From this step on copies differ in attempt 1; 0: never."""


RULES = {
    "own-attempt": "chunks lie under the attempt that wrote them (B4)",
    "own-save": "chunks lie under the checkpoint that wrote them, so a key is never written again (B4)",
    "one-base": "a save refers only to chunks of its base, the newest commit on its lineage (B4)",
    "keep-newest": "the newest usable commit is never expired (D5)",
    "keep-best": "the newest of the usable commits of which the least is known to be wrong is never expired (C5, D5)",
    "pass-over": "a checkpoint whose copies differ is passed over for a sound one (C2, J4)",
    "expire-first": "a checkpoint is recorded as expired before its deletion is ordered (D1)",
    "list-store": "who deletes looks at every commit in the store, not only at those the operator knew (D2)",
    "all-manifests": "the commit record is written after the manifests of all ranks (B2, B3)",
    "in-order": "when a newer save commits, older open ones are abandoned (A8)",
    "incarnation": "a claim that is there already is ours only if it holds our incarnation (A4)",
    "tombstone": "a tombstone is written before anything is deleted, and is honoured (D2)",
    "stone-stays": "the tombstone of a deleted checkpoint stays (D2)",
    "name-first": "a branch is named in the source before it is claimed (D6)",
    "look-again": "a branch looks for the commit and its tombstone after it has been named (D6)",
    "stone-then-refs": "the deleter reads the references after it has written the tombstone (D2)",
    "only-whole": "a tombstone is taken back only of what has all its chunks (D2): the commit of a deleted one may have arrived once more",
    "finish-claims": "who finishes a save looks for claims once more before its commit record (A5, E6)",
    "finish-stones": "and for its tombstone (D2, E6)",
    "finish-newer": "and for a newer commit of its attempt (A8, E6)",
    "finish-manifests": "and for the manifests of all ranks (B2, E6)",
    "not-a-commit": "what lies on nodes alone is no checkpoint, and nobody claims to continue it (B2, E6)",
    "keep-pending": "what waits on a node is not pruned for a newer save of its attempt (E6)",
    "heard": "what a save that was given up has stored is buried first, unless everybody has dropped his part (D2, E6)",
    "leave-open": "what a running attempt has not committed yet is not swept (D4)",
}


class Save(NamedTuple):
    step: int
    base: Commit | None
    chunks: frozenset[Key]
    """Still to be written."""
    ranks: frozenset[int]
    """Whose manifests are still to be written."""
    refs: frozenset[Key]


class Part(NamedTuple):
    """A rank's, whole on its node. `phase`: kept, looked, sent, stored, sure."""

    commit: Commit
    rank: int
    life: int
    base: Commit | None
    refs: frozenset[Key]
    phase: str = "kept"


class Gang(NamedTuple):
    """One life of an attempt. `phase`: new, run, gone."""

    phase: str = "new"
    step: int = 0
    saves: tuple[Save, ...] = ()
    orders: tuple[tuple[Any, ...], ...] = ()
    """What is still to be done of deletions: ("order", commit, commits known), ("look", commit, known), ("sweep", keys, commit or None)."""


class Operator(NamedTuple):
    current: int = 1
    life: int = 0
    known: frozenset[Commit] = frozenset()
    expired: frozenset[Commit] = frozenset()
    given: int = 0


class State(NamedTuple):
    claims: frozenset[tuple[int, tuple[int, Commit | None]]] = frozenset()
    """attempt -> (life that it belongs to, parent)."""
    commits: frozenset[tuple[Commit, frozenset[Key]]] = frozenset()
    manifests: frozenset[tuple[Commit, int]] = frozenset()
    chunks: frozenset[Key] = frozenset()
    stones: frozenset[Commit] = frozenset()
    gangs: tuple[Gang, ...] = ()
    """By attempt and life."""
    operator: Operator = Operator()
    lost: frozenset[tuple[Commit, frozenset[Key]]] = frozenset()
    """Commit records that may arrive once more."""
    resent: int = 0
    parts: frozenset[Part] = frozenset()
    on_nodes: frozenset[Commit] = frozenset()
    """Of which all ranks' parts were whole at some time, and that nobody has given up."""
    closed: str = ""
    """What was finished although it could not be any more."""
    branches: tuple[tuple[str, Commit | None], ...] = ()
    """(idle | seen | named | claimed | away, checkpoint)."""
    refs: frozenset[Commit] = frozenset()


Move = tuple[str, State]


def lineage(claims: dict[int, Any], commits: Collection[Any], attempt: int) -> list[Any]:
    """Commits that the attempt may build on, oldest first: its own, its parent's up to the parent's step, and so on. `claims`: attempt -> parent."""
    found: list[Any] = []
    limit = None
    while attempt:
        found += [c for c in commits if c[0] == attempt and (limit is None or c[1] <= limit)]
        parent = claims.get(attempt)
        if parent is None:
            break
        attempt, limit = parent
    return sorted(found, key=lambda c: c[1])


class Model:
    def __init__(self, scope: Scope, without: Collection[str] = ()) -> None:
        self.scope, self.off = scope, frozenset(without)

    def start(self) -> State:
        gangs = (Gang(),) * (self.scope.attempts * self.scope.lives)
        return State(gangs=gangs, branches=(("idle", None),) * self.scope.branches)

    def moves(self, s: State) -> Iterator[Move]:
        yield from self.operator_moves(s)
        for i, gang in enumerate(s.gangs):
            attempt, life = self.who(i)
            if gang.phase == "new" and (attempt, life) <= (s.operator.current, s.operator.life):
                yield from self.claim_moves(s, i)
            elif gang.phase == "run":
                yield from self.save_moves(s, i)
                yield from self.order_moves(s, i)
                if self.scope.tidy:
                    yield from self.tidy_moves(s, i)
        if s.resent < self.scope.resends:
            for commit, refs in s.lost - s.commits:
                if commit not in dict(s.commits):
                    yield f"resend{commit}", s._replace(commits=s.commits | {(commit, refs)}, resent=s.resent + 1)
        for i in range(self.scope.branches):
            yield from self.branch_moves(s, i)
        for part in sorted(s.parts, key=lambda p: p[:3]):
            yield from self.part_moves(s, part)

    def who(self, index: int) -> tuple[int, int]:
        return index // self.scope.lives + 1, index % self.scope.lives

    def usable(self, s: State, attempt: int) -> list[Commit]:
        parents = {n: parent for n, (_, parent) in s.claims}
        dead = s.operator.expired | s.stones
        return [c for c in lineage(parents, dict(s.commits), attempt) if c not in dead]

    def grade(self, s: State, commit: Commit) -> int:
        """0 sound, 1 suspect, 2 not finite (holdfast_api.soundness)."""
        if self.scope.wrong and commit[1] >= self.scope.wrong:
            return 2
        return int(bool(self.scope.odd) and self.is_odd({n: parent for n, (_, parent) in s.claims}, commit))

    def is_odd(self, parents: dict[int, Commit | None], commit: Commit) -> bool:
        """Each rank loads what it had saved, so copies that differ stay so."""
        attempt, step = commit
        while attempt > 1:
            parent = parents.get(attempt)
            if parent is None:
                return False
            attempt, step = parent
        return step >= self.scope.odd

    def operator_moves(self, s: State) -> Iterator[Move]:
        op = s.operator
        if op.current < self.scope.attempts:
            yield "supersede", s._replace(operator=op._replace(current=op.current + 1, life=0))
        if self.scope.forgets and op.expired:
            yield "forget", s._replace(operator=op._replace(known=frozenset(), expired=frozenset()))
        if op.life + 1 < self.scope.lives:
            # From a backup: the number is given again, and what was known and decided since is forgotten.
            yield "restore", s._replace(operator=Operator(op.current, op.life + 1, given=op.given))
        for commit, _ in s.commits:
            if commit not in op.known:
                yield f"learn{commit}", s._replace(operator=op._replace(known=op.known | {commit}))
        claimed = dict(s.claims).get(op.current)
        if (
            op.given == self.scope.orders or claimed is None or claimed[0] != op.life
        ):  # no order before the attempt has claimed (D1)
            return
        usable = [c for c in self.usable(s, op.current) if c in op.known]
        kept = set() if "keep-newest" in self.off else {*usable[-1:]}
        kept |= set() if "keep-best" in self.off or "keep-newest" in self.off else {*self.best(s, usable)[-1:]}
        for doomed in (c for c in usable if c not in kept):
            keep = frozenset(c for c in usable if c != doomed)
            expired = op.expired if "expire-first" in self.off else op.expired | {doomed}
            index = (op.current - 1) * self.scope.lives + op.life
            told = self.put(s, index, orders=(*s.gangs[index].orders, ("order", doomed, keep)))
            yield f"order{doomed}", told._replace(operator=op._replace(expired=expired, given=op.given + 1))

    def claim_moves(self, s: State, i: int) -> Iterator[Move]:
        attempt, life = self.who(i)
        made = dict(s.claims)
        if any(n > attempt for n in made):
            return
        parents = {n: parent for n, (_, parent) in s.claims}
        before = max((n for n in made if n < attempt), default=0)
        usable = [c for c in lineage(parents, dict(s.commits), before) if c not in s.operator.expired | s.stones]
        if "not-a-commit" in self.off:
            usable = sorted({*usable, *(p.commit for p in s.parts if p.commit[0] == before)})
        usable = self.best(s, usable)  # what something is known to be wrong with is passed over (C4, J4)
        for parent in usable or [None]:  # newer ones may have failed verification
            run = self.put(s, i, phase="run", step=parent[1] if parent else 0)
            if attempt not in made:
                yield f"claim{attempt}.{life}<-{parent}", run._replace(claims=s.claims | {(attempt, (life, parent))})
            elif not self.scope.exact:
                # Both have looked before either wrote: the later one overwrites, and each reads its own claim back.
                others = frozenset(c for c in s.claims if c[0] != attempt)
                yield f"overwrite{attempt}.{life}<-{parent}", run._replace(claims=others | {(attempt, (life, parent))})
            elif "incarnation" in self.off:
                yield f"believe{attempt}.{life}<-{parent}", run
        if attempt in made and self.scope.exact and "incarnation" not in self.off:
            yield f"superseded{attempt}.{life}", self.put(s, i, phase="gone")

    def best(self, s: State, usable: list[Commit]) -> list[Commit]:
        """Of the best grade that is left."""
        grades = {c: self.grade(s, c) for c in usable}
        if "pass-over" in self.off:
            grades = {c: 2 * (g == 2) for c, g in grades.items()}
        return [c for c in usable if grades[c] == min(grades.values())]

    def save_moves(self, s: State, i: int) -> Iterator[Move]:
        attempt, _ = self.who(i)
        gang, refs_of = s.gangs[i], dict(s.commits)
        if len(gang.saves) < self.scope.open and gang.step < self.scope.steps:
            # A zombie does not know what the operator has expired since; tombstones it finds in the store.
            dead = s.stones | (s.operator.expired if attempt == s.operator.current else frozenset())
            parents = {n: parent for n, (_, parent) in s.claims}
            line = [c for c in lineage(parents, refs_of, attempt) if c not in dead]
            base = line[-1] if line else None
            step = gang.step + 1
            there = s.chunks if "one-base" in self.off else refs_of.get(base, frozenset()) if base else frozenset()
            at = {key[2]: key for key in sorted(there)}
            refs = frozenset(at.get(c, self.key(attempt, step, c)) for c in CONTENT[step])
            save = Save(step, base, refs - there, frozenset(range(self.scope.ranks)), refs)
            yield f"save{attempt}.{step}", self.put(s, i, step=step, saves=(*gang.saves, save))
        for x, save in enumerate(gang.saves):
            rest = gang.saves[:x] + gang.saves[x + 1 :]
            yield from self.write_moves(s, i, save, rest)

    def write_moves(self, s: State, i: int, save: Save, rest: tuple[Save, ...]) -> Iterator[Move]:
        attempt, _ = self.who(i)
        commit = (attempt, save.step)

        def now(changed: Save) -> tuple[Save, ...]:
            return tuple(sorted((*rest, changed)))

        for key in sorted(save.chunks)[:1] if self.scope.open > 1 else sorted(save.chunks):
            left = save._replace(chunks=save.chunks - {key})
            yield f"put{key}", self.put(s, i, saves=now(left))._replace(chunks=s.chunks | {key})
        for rank in sorted(save.ranks)[:1]:
            own = self.contents(save.step, rank)
            if not any(key[2] in own for key in save.chunks):
                left = save._replace(ranks=save.ranks - {rank})
                written = s.manifests | {(commit, rank)}
                yield f"manifest{commit}/{rank}", self.put(s, i, saves=now(left))._replace(manifests=written)
        if self.scope.nodes:
            yield from self.keep_moves(s, i, save)
        if self.scope.gives_up:
            yield from self.give_up_moves(s, i, save, rest)
        if save.chunks or (save.ranks and "all-manifests" not in self.off) or commit in dict(s.commits):
            return
        others = rest if "in-order" in self.off else tuple(o for o in rest if o.step > save.step)
        done = self.put(s, i, saves=others)
        record = (commit, save.refs)
        lost = s.lost | {record} if self.scope.resends else s.lost
        if "in-order" in self.off or all(c[0] != attempt or c[1] < save.step for c, _ in s.commits):
            if commit in s.stones:
                yield f"refused{commit}", self.put(s, i, saves=rest)
            else:
                yield f"commit{commit}", done._replace(commits=s.commits | {record}, lost=lost)
        else:
            yield f"abandon{commit}", self.put(s, i, saves=rest)

    def contents(self, step: int, rank: int) -> set[str]:
        """Dealt out to the ranks: rank 0 has the first, rank 1 the second."""
        return {c for n, c in enumerate(CONTENT[step]) if n % self.scope.ranks == rank}

    def keep_moves(self, s: State, i: int, save: Save) -> Iterator[Move]:
        """The node's part is whole; if room is short, what an older save of the attempt has left there may go for it."""
        attempt, life = self.who(i)
        commit = (attempt, save.step)
        there = {p.rank for p in s.parts if p.commit == commit}
        for rank in sorted(set(range(self.scope.ranks)) - there)[:1]:
            part = Part(commit, rank, life, save.base, save.refs)
            whole = s.on_nodes | {commit} if len(there) + 1 == self.scope.ranks else s.on_nodes
            yield f"keep{commit}/{rank}", s._replace(parts=s.parts | {part}, on_nodes=whole)
        if "keep-pending" in self.off:
            for part in sorted((p for p in s.parts if p.commit < commit), key=lambda p: p[:3]):
                yield f"prune{part.commit}/{part.rank}", s._replace(parts=s.parts - {part})

    def give_up_moves(self, s: State, i: int, save: Save, rest: tuple[Save, ...]) -> Iterator[Move]:
        """Everybody hears it and drops his part; or somebody does not: he is gone, or has returned to his node in the next attempt."""
        attempt = self.who(i)[0]
        commit = (attempt, save.step)
        parts = frozenset(p for p in s.parts if p.commit == commit)
        orders = s.gangs[i].orders
        after = s._replace(on_nodes=s.on_nodes - {commit})
        if not parts or s.operator.current == attempt:
            told = (*orders, ("discard", commit, False))
            yield f"give-up{commit}", self.put(after, i, saves=rest, orders=told)._replace(parts=s.parts - parts)
        if parts:
            told = (*orders, ("discard", commit, "heard" not in self.off))
            yield f"give-up-unheard{commit}", self.put(after, i, saves=rest, orders=told)

    def may_finish(self, s: State, part: Part, *, at_last: bool) -> bool:
        """`at_last`: before the commit record; else before anything is sent."""
        attempt, step = part.commit

        def left_out(rule: str) -> bool:
            return at_last and rule in self.off

        newest = max(n for n, _ in s.claims)
        claimed = newest == attempt and dict(s.claims)[attempt][0] == part.life
        newer = any(c[0] == attempt and c[1] > step for c, _ in s.commits)
        return (
            (claimed or left_out("finish-claims"))
            and (part.commit not in s.stones or left_out("finish-stones"))
            and (not newer or left_out("finish-newer"))
        )

    def part_moves(self, s: State, part: Part) -> Iterator[Move]:
        commit, attempt = part.commit, part.commit[0]
        name = f"{commit}/{part.rank}"
        rest = s.parts - {part}
        if any(n > attempt for n, _ in s.claims):
            yield f"drop{name}", s._replace(parts=rest)
        if s.operator.current <= attempt:
            return  # nobody has returned

        def now(phase: str) -> frozenset[Part]:
            return rest | {part._replace(phase=phase)}

        if part.phase == "kept" and self.may_finish(s, part, at_last=False):
            yield f"look{name}", s._replace(parts=now("looked"))
        elif part.phase == "looked":
            own = self.contents(commit[1], part.rank)
            sent = frozenset(key for key in part.refs if key[:2] == commit and key[2] in own)
            yield f"send{name}", s._replace(parts=now("sent"), chunks=s.chunks | sent)
        elif part.phase == "sent":
            written = s.manifests | {(commit, part.rank)}
            yield f"send-manifest{name}", s._replace(parts=now("stored"), manifests=written)
        elif part.phase == "stored" and commit not in dict(s.commits):
            whole = all((commit, rank) in s.manifests for rank in range(self.scope.ranks))
            based = part.base is None or (part.base in dict(s.commits) and part.base not in s.stones)
            if (whole or "finish-manifests" in self.off) and based and self.may_finish(s, part, at_last=True):
                if self.scope.apart:
                    yield f"look-again{name}", s._replace(parts=now("sure"))
                else:
                    yield f"finish{name}", self.finished(s, part)
        elif part.phase == "sure" and commit not in dict(s.commits):
            yield f"finish{name}", self.finished(s, part)

    def finished(self, s: State, part: Part) -> State:
        commit = part.commit
        late = any(n > commit[0] for n, _ in s.claims) or commit in s.stones
        late = late or any(c[0] == commit[0] and c[1] > commit[1] for c, _ in s.commits)
        after = s._replace(parts=s.parts - {part}, commits=s.commits | {(commit, part.refs)})
        return after._replace(closed=str(commit)) if late and not self.scope.apart else after

    def order_moves(self, s: State, i: int) -> Iterator[Move]:
        """Orders are carried out at once, or much later, and in several strokes."""
        gang, refs_of = s.gangs[i], dict(s.commits)
        if not self.scope.late and any(n > self.who(i)[0] for n, _ in s.claims):
            return
        for j, order in enumerate(gang.orders):
            rest = gang.orders[:j] + gang.orders[j + 1 :]
            kind, doomed, detail = order
            if kind == "sweep":
                stones = s.stones - {detail} if "stone-stays" in self.off else s.stones
                yield (
                    f"sweep{sorted(doomed)}",
                    self.put(s, i, orders=rest)._replace(chunks=s.chunks - doomed, stones=stones),
                )
            elif kind == "discard" and doomed in refs_of:
                yield f"made-meanwhile{doomed}", self.put(s, i, orders=rest)
            elif kind == "discard" and detail:
                told = (*rest, ("discarding", doomed, None))
                yield f"bury{doomed}", self.put(s, i, orders=told)._replace(stones=s.stones | {doomed})
            elif kind == "discarding" and doomed in refs_of:
                yield f"exhume{doomed}", self.put(s, i, orders=rest)._replace(stones=s.stones - {doomed})
            elif kind in ("discard", "discarding"):
                lying = frozenset(key for key in s.chunks if key[:2] == doomed)
                told = (*rest, ("sweep", lying, None)) if lying else rest
                yield f"discard{doomed}", self.put(s, i, orders=told)
            elif doomed not in refs_of:
                yield "void", self.put(s, i, orders=rest)
            elif any(save.base == doomed for save in gang.saves):
                continue
            elif kind == "order" and self.scope.branches and "stone-then-refs" in self.off:
                told = rest if doomed in s.refs else (*rest, ("looked", doomed, detail))
                yield f"look{doomed}", self.put(s, i, orders=told)
            elif kind == "order" and self.scope.branches:
                told = (*rest, ("look", doomed, detail))
                yield f"stone{doomed}", self.put(s, i, orders=told)._replace(stones=s.stones | {doomed})
            elif any(o[0] == "sweep" and o[2] == doomed for o in gang.orders):
                continue  # one deletion after the other
            elif kind == "look" and doomed in s.refs:
                whole = refs_of[doomed] <= s.chunks or "only-whole" in self.off
                stones = s.stones - {doomed} if whole else s.stones
                yield f"take-back{doomed}", self.put(s, i, orders=rest)._replace(stones=stones)
            else:
                seen = detail if "list-store" in self.off else refs_of
                held = frozenset(key for c in seen if c != doomed for key in refs_of.get(c, ()))
                left = frozenset((c, r) for c, r in s.commits if c != doomed)
                told = (*rest, ("sweep", refs_of[doomed] - held, doomed))
                stones = s.stones if "tombstone" in self.off else s.stones | {doomed}
                yield f"delete{doomed}", self.put(s, i, orders=told)._replace(commits=left, stones=stones)

    def tidy_moves(self, s: State, i: int) -> Iterator[Move]:
        """D4, under the newest claim only: saves without a commit."""
        attempt, _ = self.who(i)
        if any(n > attempt for n, _ in s.claims):
            return
        refs_of, parents = dict(s.commits), {n: parent for n, (_, parent) in s.claims}
        bounds: dict[int, int | None] = {attempt: None}
        for n, parent in self.walk(parents, attempt):
            bounds[n] = parent
        for save in sorted({(n, step) for n, step, _ in s.chunks} - set(refs_of)):
            verdict = self.leftover(save, attempt, bounds, refs_of, s)
            if not verdict:
                continue
            stones = s.stones | {save} if verdict == "bury" else s.stones
            held = frozenset(key for refs in refs_of.values() for key in refs)
            lying = frozenset(key for key in s.chunks if key[:2] == save) - held
            if lying and not any(o[0] == "sweep" and o[1] == lying for o in s.gangs[i].orders):
                told = (*s.gangs[i].orders, ("sweep", lying, None))
                yield f"tidy{save}", self.put(s, i, orders=told)._replace(stones=stones)

    @staticmethod
    def walk(parents: dict[int, Commit | None], attempt: int) -> Iterator[Commit]:
        while parent := parents.get(attempt):
            yield parent
            attempt = parent[0]

    def leftover(
        self, save: Commit, attempt: int, bounds: dict[int, int | None], refs_of: dict[Commit, Any], s: State
    ) -> str:
        n, step = save
        if save in s.stones or "leave-open" in self.off:
            return "sweep"
        if n == attempt:
            last = max((c[1] for c in refs_of if c[0] == n), default=0)
            return "bury" if step < last else ""
        bound = bounds.get(n)
        return (
            "bury"
            if bound is not None and step < bound
            else "sweep"
            if n < attempt and (bound is None or step > bound)
            else ""
        )

    def branch_moves(self, s: State, b: int) -> Iterator[Move]:
        phase, target = s.branches[b]

        def to(phase: str, commit: Commit | None, **changes: Any) -> State:
            return s._replace(branches=(*s.branches[:b], (phase, commit), *s.branches[b + 1 :]), **changes)

        there = {c for c, _ in s.commits} - s.stones
        if phase == "idle":
            parents = {n: parent for n, (_, parent) in s.claims}
            for commit in lineage(
                parents, there, max(parents, default=0)
            ):  # what is off the lineage is offered to nobody (A7)
                yield f"see{commit}", to("seen", commit)
        elif phase == "seen" and "name-first" in self.off:
            yield f"claim-branch{target}", to("named" if target in there else "away", target)
        elif phase == "seen":
            yield f"name{target}", to("named", target, refs=s.refs | {target})
        elif phase == "named" and "name-first" in self.off:
            yield f"name-late{target}", to("claimed", target, refs=s.refs | {target})
        elif phase == "named":
            whole = target in there or "look-again" in self.off
            yield f"{'build' if whole else 'leave'}{target}", to("claimed" if whole else "away", target)

    def key(self, attempt: int, step: int, content: str) -> Key:
        return (0 if "own-attempt" in self.off else attempt, 0 if "own-save" in self.off else step, content)

    @staticmethod
    def put(s: State, i: int, **changes: Any) -> State:
        return s._replace(gangs=(*s.gangs[:i], s.gangs[i]._replace(**changes), *s.gangs[i + 1 :]))

    def violation(self, s: State) -> str | None:
        if not s.claims:
            return None
        refs_of, manifests = dict(s.commits), s.manifests
        newest = max(n for n, _ in s.claims)
        usable = self.usable(s, newest)
        for c in usable:
            if not refs_of[c] <= s.chunks:
                return f"SAFE: {c} has lost {sorted(refs_of[c] - s.chunks)}"
            if any((c, rank) not in manifests for rank in range(self.scope.ranks)):
                return f"SAFE: {c} has no manifest of some rank"
        running = [self.who(i)[0] for i, gang in enumerate(s.gangs) if gang.phase == "run"]
        if any(a == b for a, b in pairwise(running)):
            return f"ONE: two gangs are attempt {max(running, key=running.count)}"
        if s.closed:
            return f"CLOSED: {s.closed} was finished too late"
        for c in s.on_nodes - s.stones - set(refs_of):
            ranks = {p.rank for p in s.parts if p.commit == c} | {rank for d, rank in manifests if d == c}
            if c[0] == newest and len(ranks) < self.scope.ranks and not any(d[0] == newest and d > c for d in refs_of):
                return f"KEPT: {c} has lost what was on a node"
        for phase, target in s.branches:
            if phase == "claimed" and (target not in refs_of or not refs_of[target] <= s.chunks):
                return f"BRANCH: {target} is gone"
        parents = {n: parent for n, (_, parent) in s.claims}
        # A save that was abandoned has a stone and was never a checkpoint.
        given_up = lineage(parents, s.operator.expired | (s.stones & {c for c, _ in s.lost}), newest)
        if usable and min((self.grade(s, c) for c in given_up), default=9) < min(self.grade(s, c) for c in usable):
            return f"SOUND: {given_up} are given up, and only {usable} are left"
        continued = dict(s.claims)[newest][1]
        if self.scope.odd and continued and self.grade(s, continued) == 1 and any(not self.grade(s, c) for c in usable):
            return f"CLEAN: {newest} continues {continued}, and {usable} are left"
        gone = any(c[0] == newest for c in s.operator.expired)
        parent = dict(s.claims)[newest][1]
        return "ALIVE: nothing usable is left" if (parent or gone) and not usable else None


def explore(model: Model, limit: int) -> tuple[int, str | None]:
    """Number of states seen, and the first violation with the shortest way to it."""
    came: dict[State, Any] = {model.start(): None}
    queue = deque([model.start()])
    while queue and len(came) < limit:
        state = queue.popleft()
        for name, after in model.moves(state):
            if after in came:
                continue
            came[after] = (state, name)
            broken = model.violation(after)
            if broken:
                return len(came), broken + "  by: " + _way(came, after)
            queue.append(after)
    return len(came), None


def wander(model: Model, seed: int, steps: int) -> str | None:
    """The first violation on one random way: for scopes that are too wide to be explored."""
    chance, state, way = random.Random(seed), model.start(), []
    for _ in range(steps):
        moves = sorted(
            model.moves(state), key=lambda move: move[0]
        )  # sets have no order of their own, and a seed is to mean one way
        if not moves:
            return None
        name, state = chance.choice(moves)
        way.append(name)
        if broken := model.violation(state):
            return f"{broken}  by: {' '.join(way)}"
    return None


def _way(came: dict[State, Any], state: State) -> str:
    way: list[str] = []
    while came[state]:
        state, name = came[state]
        way.append(name)
    return " ".join(reversed(way))
