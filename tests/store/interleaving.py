"""Drives the real store code of several attempts through one random interleaving, one bucket operation at a time, and checks the bucket after each.

Every gang runs in a thread of its own that stops before each operation; the stage picks who goes on. A gang may be killed between any two operations, be
superseded and go on as a zombie until it looks, or meet another gang that was given the same number. Another job may build on what lies here, commit records
that were written may arrive once more, the operator may forget. The oracle reads raw objects by itself and shares nothing with the store but the codec.
"""

import contextlib
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from protocol_model import lineage
from worlds import CHUNK, World, ref

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim, CommitRecord, Pending, RankManifest
from holdfast_api.messages import RestoreOrder
from holdfast_store.chunks import digest
from holdfast_store.errors import NotOnRecord, StoreError
from holdfast_store.memory import Effect, Fault, MemoryBucket

CONTENT = [b"aaaabbbb", b"bbbbcccc", b"aaaacccc", b"bbbbdddd", b"aaaadddd"]
"""Content that comes back is what makes re-used keys and shared chunks dangerous."""


class Killed(BaseException):
    """The process is gone: no handler of the store's own errors sees it."""


@dataclass
class Operator:
    """What the job's status holds: the current attempt, and the deletions that were recorded before they were ordered (D1)."""

    current: int = 1
    expired: set[CheckpointRef] = field(default_factory=set)
    orders: list[tuple[int, CheckpointRef]] = field(default_factory=list)


@dataclass
class Rules:
    """How careful the actors are: tests turn a rule off to show that its absence is found."""

    operator_keeps_newest: bool = True
    agent_uses_its_base_only: bool = True


@dataclass(frozen=True)
class Happens:
    """What may happen beside the usual: probabilities for each operation of anybody."""

    ranks: int = 1
    open_saves: int = 1
    second_life: float = 0.0
    """The operator gives the current number to another gang (A4)."""
    resend: float = 0.0
    """A commit record that was written before is written again, if nothing lies there (D2)."""
    forget: float = 0.0
    """The operator loses what it had expired, while nobody is in the middle of a deletion (see protocol_model: `late`)."""
    branch: bool = False
    """Another job comes and builds on what it finds (D6)."""
    nodes: bool = False
    """Parts of saves lie whole on nodes, and are finished from there once the next attempt is on (E6); gangs give saves up."""
    conditional: bool = True
    """False: the store overwrites where it should refuse (B8)."""


@dataclass(frozen=True)
class OnNode:
    """One rank's part of a save."""

    pending: Pending
    manifest: RankManifest
    image: bytes


class Actor:
    """One gang, as its agents would act: resolve, claim, then save, commit, and carry out orders."""

    def __init__(self, stage: "Stage", attempt: int, life: int = 0) -> None:
        self.stage, self.attempt, self.life = stage, attempt, life
        self.incarnation = f"life-{attempt}-{life}"
        self.deleting = False
        self.world = World(stage.bucket)
        self.excluded = tuple(sorted(stage.operator.expired))
        self.go = threading.Semaphore(0)
        self.killed = self.done = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.go.acquire()
        self.stage.here.actor = self
        with contextlib.suppress(StoreError, Killed):
            if not self.killed:
                self._live()
        self.done = True
        self.stage.control.release()

    def _live(self) -> None:
        chance = random.Random(f"{self.stage.seed}/{self.attempt}" + (f"/{self.life}" if self.life else ""))
        found = self.world.store.resolve(RestoreOrder(excluded=self.excluded), self.attempt)
        if not found.candidates and not found.fresh_allowed:
            return
        chosen = (
            found.candidates[min(chance.choice([0, 0, 0, 1]), len(found.candidates) - 1)] if found.candidates else None
        )
        base = chosen.record if chosen else None
        parent = base.ref if base else None
        self.world.store.claim(self.world.a_claim(self.attempt, parent, incarnation=self.incarnation))
        self.stage.believes.append((self.attempt, self.life))
        for save in range(1, 5, self.stage.happens.open_saves):
            self._carry_out(base, chance)
            base = self._save(save, base, chance)
        self._carry_out(base, chance)

    def _carry_out(self, base: CommitRecord | None, chance: random.Random) -> None:
        mine = [order for order in self.stage.operator.orders if order[0] == self.attempt]
        for order in mine:
            self.stage.operator.orders.remove(order)
            in_use = (base.ref,) if base else ()
            self.deleting = True
            self.world.store.expire(order[1], by_attempt=self.attempt, reason="order", in_use=in_use)
            self.deleting = False
        if chance.random() < 0.3:
            self.world.store.sweep(attempt=self.attempt)

    def _save(self, save: int, base: CommitRecord | None, chance: random.Random) -> CommitRecord | None:
        """Some saves from one base, all open at a time; then their commits in any order, of which those that come too late are refused (A8)."""
        records = []
        for number in range(save, save + self.stage.happens.open_saves):
            content = chance.choice(CONTENT)
            images = [content, *(chance.choice(CONTENT) for _ in range(self.stage.happens.ranks - 1))]
            if self.stage.happens.nodes:
                self._lies_on_nodes(number, images, base, chance)
            records.append(self.world.prepared(self.attempt, number, images, base=base.ref if base else None))
            if not self.stage.rules.agent_uses_its_base_only:
                records[-1] = self._leaning_on_anything(save, content, base)
        if self.stage.happens.nodes and chance.random() < 0.3:
            self._give_up(records.pop().ref, chance)
        if len(records) == 1:
            return self._commit(records[0])
        newest = base
        for record in chance.sample(records, len(records)):
            with contextlib.suppress(NotOnRecord):
                newest = self._commit(record)
        return newest

    def _lies_on_nodes(self, save: int, images: list[bytes], base: CommitRecord | None, chance: random.Random) -> None:
        """Whole there, all of it or a part; sometimes that is all that there will ever be."""
        for rank, image in enumerate(images):
            if chance.random() < 0.9:
                at = base.ref if base else None
                left = self.world.left(self.attempt, save, images, worker=rank, base=at, incarnation=self.incarnation)
                self.stage.left.append(OnNode(*left, image))
        if chance.random() < 0.2:
            raise Killed

    def _give_up(self, save: CheckpointRef, chance: random.Random) -> None:
        """Somebody who has returned to his node hears nothing of it any more."""
        parts = [p for p in self.stage.left if p.pending.ref == save]
        heard = self.stage.operator.current == self.attempt and chance.random() < 0.5
        if heard:
            self.stage.left = [p for p in self.stage.left if p not in parts]
        self.world.store.discard(save, sent=not heard and bool(parts))

    def _commit(self, record: CommitRecord) -> CommitRecord:
        incarnation = self.incarnation if self.stage.happens.second_life else None
        return codec.from_json(CommitRecord, self.world.store.commit(record, incarnation=incarnation).encode())

    def _leaning_on_anything(self, save: int, content: bytes, base: CommitRecord | None) -> CommitRecord:
        """A save that refers to every chunk it can find anywhere in the store."""
        reuse = {}
        for info in self.stage.bucket.list(self.world.store.prefix + "checkpoints/"):
            parsed = layout.parse_checkpoint_key(info.key.removeprefix(self.world.store.prefix))
            if parsed and parsed[1].startswith("chunks/") and parsed[0] < ref(self.attempt, save):
                reuse[parsed[1][7:]] = parsed[0]
        number = save + 10
        manifest = self.world.manifest(self.attempt, number, 0, 1, content, reuse)
        entry = self.world.store.create_manifest(manifest)
        places = tuple(sorted({c.at for c in manifest.chunks} - {ref(self.attempt, number)}))
        record = self.world.prepared(self.attempt, number + 10, content)
        plain = codec.to_plain(record) | {
            "save": number, "ranks": [codec.to_plain(entry)], "refers_to": codec.to_plain(places),
            "base": codec.to_plain(base.ref if base else (places[0] if places else None)),
        }  # fmt: skip
        return codec.from_plain(CommitRecord, plain)


class Finisher(Actor):
    """Who has returned to a node and finds a part of a save there (E6)."""

    def __init__(self, stage: "Stage", part: OnNode) -> None:
        super().__init__(stage, part.pending.attempt)
        self.part = part

    def _live(self) -> None:
        part = self.part
        for _ in range(4):
            record = self.world.sent(part.pending, part.manifest, part.image)
            if record is not None:
                self.stage.finished.add(record.ref)
                return


class Branch(Actor):
    """Another job under the same name, which continues what it finds here."""

    def _live(self) -> None:
        chance = random.Random(f"{self.stage.seed}/branch")
        other = World(self.stage.bucket, "uid-2")
        order = RestoreOrder(resume_from_uid="uid-1")
        found = other.store.resolve(order, 1).candidates
        if found:
            parent = chance.choice(found).record.ref
            other.store.claim(other.a_claim(1, parent, parent_uid="uid-1"))
            self.stage.oracle.built_on = parent


class Stage:
    """Picks who acts next, plays the operator, and asks the oracle after every operation."""

    def __init__(self, seed: int, rules: Rules, *, attempts: int = 3, happens: Happens | None = None) -> None:
        self.seed, self.rules, self.attempts = seed, rules, attempts
        self.happens = happens or Happens()
        self.written: dict[str, bytes] = {}
        """Commit records that anybody has written."""
        self.believes: list[tuple[int, int]] = []
        """(attempt, life) of each gang that believes that it has claimed."""
        self.lives: dict[int, int] = {}
        self.left: list[OnNode] = []
        self.finished: set[CheckpointRef] = set()
        self.chance = random.Random(seed)
        self.here = threading.local()
        self.control = threading.Semaphore(0)
        faults = [] if self.happens.conditional else [Fault(Effect.NOT_EXCLUSIVE, "create", times=0)]
        self.bucket = MemoryBucket(faults, before_call=self._before_call)
        self.operator = Operator()
        self.oracle = Oracle(self.bucket)
        self.actors: list[Actor] = []
        self.steps = 0

    def run(self) -> str:
        """The first violation, or "" if the interleaving ends well."""
        self._start(1)
        while alive := [a for a in self.actors if not a.done]:
            self._operate()
            actor = self.chance.choice(alive)
            actor.killed = actor.killed or self.chance.random() < 0.002
            actor.go.release()
            self.control.acquire()
            self.steps += 1
            twice = {n for n, _ in self.believes if len({life for m, life in self.believes if m == n}) > 1}
            if problem := self.oracle.violation(self.operator) or (
                f"ONE: two gangs are attempt {twice}" if twice else ""
            ):
                self._end()
                return f"seed {self.seed}, step {self.steps}: {problem}"
            if all(a.done for a in self.actors) and self.operator.current < self.attempts:
                self._supersede()
        return ""

    def _before_call(self, _operation: str, _key: str) -> None:
        actor = getattr(self.here, "actor", None)
        if actor is None:
            return
        self.control.release()
        actor.go.acquire()
        if actor.killed:
            raise Killed

    def _happen(self) -> None:
        """What is rare. Draws nothing where it is switched off, so that seeds keep their meaning."""
        h, chance = self.happens, self.chance
        if h.second_life and self.operator.current not in self.lives and chance.random() < h.second_life:
            self.lives[self.operator.current] = 1
            self._enter(Actor(self, self.operator.current, 1))
        if h.branch and not any(isinstance(a, Branch) for a in self.actors) and chance.random() < 0.02:
            self._enter(Branch(self, 0))
        if h.resend:
            objects = self.bucket.objects
            self.written |= {key: data for key, data in objects.items() if key.endswith("/commit.json")}
            gone = sorted(self.written.keys() - objects.keys())
            if gone and chance.random() < h.resend:
                again = chance.choice(gone)
                self.bucket.create(again, self.written[again])
        busy = self.operator.orders or any(a.deleting and not a.done for a in self.actors)
        if h.forget and self.operator.expired and not busy and chance.random() < h.forget:
            self.operator.expired.clear()

    def _operate(self) -> None:
        self._happen()
        if self.operator.current < self.attempts and self.chance.random() < 0.004:
            self._supersede()
        if self.chance.random() >= 0.05:
            return
        newest, usable = self.oracle.usable(self.operator)
        orderable = usable[:-1] if self.rules.operator_keeps_newest else usable
        if newest == self.operator.current and orderable:
            doomed = self.chance.choice(orderable)
            if doomed != usable[-1]:
                self.operator.expired.add(doomed)
            self.operator.orders.append((newest, doomed))

    def _supersede(self) -> None:
        self.operator.current += 1
        for part in self.left[-4:]:
            self._enter(Finisher(self, part))
        self._start(self.operator.current)

    def _start(self, attempt: int) -> None:
        self._enter(Actor(self, attempt))

    def _enter(self, actor: Actor) -> None:
        self.actors.append(actor)
        actor.thread.start()

    def _end(self) -> None:
        for actor in self.actors:
            while not actor.done:
                actor.killed = True
                actor.go.release()
                self.control.acquire()


class Oracle:
    """Reads raw objects and says whether the store still holds what it must."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self.bucket = bucket
        self.prefix = layout.job_prefix("ns", "job", "uid-1")
        self._parsed: dict[tuple[str, bytes], Any] = {}
        self._looked_at: tuple[object, ...] = ()
        self.built_on: CheckpointRef | None = None
        """What another job has claimed to continue."""

    def usable(self, operator: Operator) -> tuple[int, list[CheckpointRef]]:
        """The newest claimed attempt, and the usable commits of its lineage, oldest first."""
        claims, commits, buried = self._read()
        if not claims:
            return 0, []
        newest = max(claims)
        parents = {n: (c.parent.attempt, c.parent.save) if c.parent else None for n, c in claims.items()}
        line = {CheckpointRef(*pair) for pair in lineage(parents, [(r.attempt, r.save) for r in commits], newest)}
        return newest, sorted(r for r in line if r not in buried and r not in operator.expired)

    def violation(self, operator: Operator) -> str:
        """What is wrong with the present state, or "". Looks only when something has changed since it last looked."""
        now = (self.bucket.changes, len(operator.expired), self.built_on)
        if now == self._looked_at:
            return ""
        self._looked_at = now
        claims, commits, _ = self._read()
        newest, usable = self.usable(operator)
        for checkpoint in usable:
            if problem := self._lost(commits[checkpoint]):
                return f"SAFE: {checkpoint} {problem}"
        if self.built_on and self.built_on not in commits:
            return f"BRANCH: {self.built_on} is gone"
        if self.built_on and (problem := self._lost(commits[self.built_on])):
            return f"BRANCH: {self.built_on} {problem}"
        continued = newest and claims[newest].parent is not None
        if (continued or any(r.attempt == newest for r in operator.expired)) and not usable:
            return "ALIVE: nothing usable is left"
        return ""

    def _lost(self, record: CommitRecord) -> str:
        objects = self.bucket.objects
        for entry in record.ranks:
            key = self.prefix + layout.manifest_key(record.ref, entry.rank)
            if key not in objects or digest(objects[key]) != entry.manifest_digest:
                return f"has lost the manifest of rank {entry.rank}"
            manifest: RankManifest = self._parse(RankManifest, key, objects[key])
            for chunk in manifest.chunks:
                data = objects.get(self.prefix + layout.chunk_key(chunk.at, chunk.digest))
                if data is None or len(data) != CHUNK or digest(data) != chunk.digest:
                    return f"has lost {chunk.digest[:8]} below {chunk.at}"
        return ""

    def _read(self) -> tuple[dict[int, Claim], dict[CheckpointRef, CommitRecord], set[CheckpointRef]]:
        claims: dict[int, Claim] = {}
        commits: dict[CheckpointRef, CommitRecord] = {}
        buried: set[CheckpointRef] = set()
        for key, data in self.bucket.objects.items():
            name = key.removeprefix(self.prefix)
            if number := layout.parse_claim_key(name):
                claims[number] = self._parse(Claim, key, data)
            elif found := layout.parse_checkpoint_key(name):
                if found[1] == "commit.json":
                    commits[found[0]] = self._parse(CommitRecord, key, data)
                elif found[1] == "expired.json":
                    buried.add(found[0])
        return claims, commits, buried

    def _parse(self, cls: Callable[..., Any], key: str, data: bytes) -> Any:
        if (key, data) not in self._parsed:
            self._parsed[key, data] = codec.from_json(cls, data)  # type: ignore[type-var]
        return self._parsed[key, data]
