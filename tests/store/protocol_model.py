"""Explicit-state model of the store's rules (protocol, parts A, B, D), explored over every interleaving up to its bounds.

Attempts 1..A run one after another under one operator. A superseded attempt does not stop: it is a zombie that may still save, commit, and carry out a
deletion order that it was given before. One actor stands for the whole gang of an attempt. Saves of an attempt are made one at a time and in order (A8).
Not modelled: several saves in flight, restarted lives of one attempt (A4), tombstones and repeated writes (D2), branches (D6): the tests of the real
code show those. In every state

  SAFE   each usable commit (on the lineage of the newest claim, not expired) has all its chunks
  ALIVE  an attempt that continued something always has a usable commit

Each rule can be left out, to see whether it is needed.
"""

from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

RULES = {
    "own-attempt": "chunks lie under the attempt that wrote them",
    "own-save": "chunks lie under the checkpoint that wrote them, so a key is never written again",
    "one-base": "a save refers only to chunks of its base, the newest commit on its lineage",
    "keep-newest": "the newest usable commit is never expired",
    "expire-first": "a checkpoint is recorded as expired before its deletion is ordered",
    "list-store": "who deletes looks at every commit in the store, not only at those the operator knew",
}
CONTENT = {1: "ab", 2: "bc", 3: "ac", 4: "bd", 5: "ad"}
"""Of the state at each step: 'a' goes and comes back, which is what makes re-used keys dangerous."""

State = tuple[Any, ...]
Move = tuple[str, State]


def lineage(claims: dict[int, Any], commits: Collection[Any], attempt: int) -> list[Any]:
    """Commits that the attempt may build on, oldest first: its own, its parent's up to the parent's step, and so on."""
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
    """State: (claims, commits, chunks, actors, operator), all immutable.

    claims   {(attempt, parent commit or None)}
    commits  {(commit, chunk keys)}             a commit is (attempt, step); a chunk key is (attempt, step, content)
    actors   per attempt (phase, step, save, orders); save is None or (base, chunks still to put, all chunk keys)
    operator (current attempt, commits it knows, expired, orders given)
    """

    def __init__(self, attempts: int, steps: int, orders: int, without: Collection[str] = ()) -> None:
        self.attempts, self.last_step, self.max_orders, self.off = attempts, steps, orders, set(without)

    def start(self) -> State:
        idle = tuple(("new", 0, None, ()) for _ in range(self.attempts))
        return frozenset(), frozenset(), frozenset(), idle, (1, frozenset(), frozenset(), 0)

    def key(self, attempt: int, step: int, content: str) -> tuple[int, int, str]:
        return (0 if "own-attempt" in self.off else attempt, 0 if "own-save" in self.off else step, content)

    def moves(self, state: State) -> Iterator[Move]:
        yield from self.operator_moves(state)
        for i, (phase, *_rest) in enumerate(state[3]):
            if i + 1 <= state[4][0]:
                yield from (self.claim_moves if phase == "new" else self.training_moves)(state, i)

    def operator_moves(self, state: State) -> Iterator[Move]:
        claims, commits, chunks, actors, (current, known, expired, given) = state
        if current < self.attempts:
            yield "supersede", (claims, commits, chunks, actors, (current + 1, known, expired, given))
        for commit, _ in commits:
            if commit not in known:
                yield f"learn{commit}", (claims, commits, chunks, actors, (current, known | {commit}, expired, given))
        if given == self.max_orders or current not in dict(claims):  # no order before the attempt has claimed
            return
        usable = [c for c in lineage(dict(claims), dict(commits), current) if c in known and c not in expired]
        for doomed in usable if "keep-newest" in self.off else usable[:-1]:
            keep = frozenset(c for c in usable if c != doomed)
            now_expired = expired if "expire-first" in self.off else expired | {doomed}
            told = self.put_actor(actors, current - 1, orders=(*actors[current - 1][3], (doomed, keep)))
            yield f"order{doomed}", (claims, commits, chunks, told, (current, known, now_expired, given + 1))

    def claim_moves(self, state: State, i: int) -> Iterator[Move]:
        claims, commits, chunks, actors, operator = state
        made, n = dict(claims), i + 1
        if any(m > n for m in made):
            return
        before = max((m for m in made if m < n), default=0)
        usable = [c for c in lineage(made, dict(commits), before) if c not in operator[2]]
        for parent in usable or [None]:  # newer ones may have failed verification
            told = self.put_actor(actors, i, phase="run", step=parent[1] if parent else 0)
            yield f"claim{n}<-{parent}", (claims | {(n, parent)}, commits, chunks, told, operator)

    def training_moves(self, state: State, i: int) -> Iterator[Move]:
        yield from self.save_moves(state, i)
        yield from self.order_moves(state, i)

    def save_moves(self, state: State, i: int) -> Iterator[Move]:
        claims, commits, chunks, actors, operator = state
        made, refs_of, n = dict(claims), dict(commits), i + 1
        _, step, save, _ = actors[i]
        if save is None and step < self.last_step:
            line = [c for c in lineage(made, refs_of, n) if c not in operator[2] or n != operator[0]]
            base = line[-1] if line else None
            there = chunks if "one-base" in self.off else refs_of.get(base, frozenset())
            at = {k[2]: k for k in sorted(there)}
            refs = frozenset(at.get(c, self.key(n, step + 1, c)) for c in CONTENT[step + 1])
            told = self.put_actor(actors, i, step=step + 1, save=(base, refs - there, refs))
            yield f"save{n}.{step + 1}", (claims, commits, chunks, told, operator)
        if save is not None:
            base, todo, refs = save
            for k in todo:
                told = self.put_actor(actors, i, save=(base, todo - {k}, refs))
                yield f"put{k}", (claims, commits, chunks | {k}, told, operator)
            if not todo:
                told = self.put_actor(actors, i, save=None)
                yield f"commit{n}.{step}", (claims, commits | {((n, step), refs)}, chunks, told, operator)

    def order_moves(self, state: State, i: int) -> Iterator[Move]:
        """Orders are carried out at once, or much later, and in two strokes."""
        claims, commits, chunks, actors, operator = state
        refs_of = dict(commits)
        _, _, save, orders = actors[i]
        for j, (doomed, detail) in enumerate(orders):
            rest = orders[:j] + orders[j + 1 :]
            done = self.put_actor(actors, i, orders=rest)
            if doomed == "sweep":
                yield f"sweep{sorted(detail)}", (claims, commits, chunks - detail, done, operator)
            elif doomed not in refs_of:
                yield "void", (claims, commits, chunks, done, operator)
            elif save is None or save[0] != doomed:  # its own base has to wait
                seen = detail if "list-store" in self.off else refs_of
                held = frozenset(k for c in seen if c != doomed for k in refs_of.get(c, ()))
                left = frozenset((c, r) for c, r in commits if c != doomed)
                told = self.put_actor(actors, i, orders=(*rest, ("sweep", refs_of[doomed] - held)))
                yield f"delete{doomed}", (claims, left, chunks, told, operator)

    @staticmethod
    def put_actor(actors: tuple[Any, ...], i: int, **changes: Any) -> tuple[Any, ...]:
        fields = dict(zip(("phase", "step", "save", "orders"), actors[i], strict=True)) | changes
        return (*actors[:i], tuple(fields.values()), *actors[i + 1 :])

    def violation(self, state: State) -> str | None:
        claims, commits, chunks, _, operator = state
        made, refs_of = dict(claims), dict(commits)
        if not made:
            return None
        newest = max(made)
        usable = [c for c in lineage(made, refs_of, newest) if c not in operator[2]]
        for c in usable:
            if not refs_of[c] <= chunks:
                return f"SAFE: {c} has lost {sorted(refs_of[c] - chunks)}"
        gone = any(c[0] == newest for c in operator[2])
        return "ALIVE: nothing usable is left" if (made[newest] or gone) and not usable else None


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


def _way(came: dict[State, Any], state: State) -> str:
    way: list[str] = []
    while came[state]:
        state, name = came[state]
        way.append(name)
    return " ".join(reversed(way))
