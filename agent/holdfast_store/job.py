"""One job's checkpoints in a bucket: the face that agent, library and CLI use. The rules stand in the modules it calls."""

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath

from holdfast_api import codec, layout
from holdfast_api.errors import ContractError
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import BranchRef, Chunk, Claim, CommitRecord, Pending, RankEntry, RankManifest, Verdict
from holdfast_api.messages import AgentReport, RestoreOrder
from holdfast_store import claims, collect, commits, discover, inventory, resolve, unfinished, verdicts
from holdfast_store.bound import Bound
from holdfast_store.bucket import Bucket
from holdfast_store.chunks import digest
from holdfast_store.collect import Expiry, SweepResult
from holdfast_store.errors import Absent, AlreadyExists, Corrupt, Superseded, Unavailable
from holdfast_store.lineage import Span, Stretch, spans
from holdfast_store.records import Records
from holdfast_store.resolve import Found, Resolution
from holdfast_store.retry import Persistent


class JobStore:
    """Blocking and thread-safe; holds no state but the names. Every method may raise Unavailable, Denied or Misconfigured."""

    def __init__(self, bucket: Bucket, namespace: str, job: str, job_uid: str) -> None:
        self.bucket = bucket
        self.namespace = namespace
        self.job = job
        self.job_uid = job_uid
        self.prefix = layout.job_prefix(namespace, job, job_uid)
        self._records = Records(bucket, self.prefix, job_uid)

    def for_job(self, job_uid: str) -> "JobStore":
        """The same job name under another uid (A9, D6)."""
        return self if job_uid == self.job_uid else JobStore(self.bucket, self.namespace, self.job, job_uid)

    def until(self, deadline: float) -> "JobStore":
        """The same store for work that is worthless after `deadline` (of `time.monotonic`): retries stop there."""
        if not isinstance(self.bucket, Persistent):
            return self
        return JobStore(self.bucket.until(deadline), self.namespace, self.job, self.job_uid)

    # Claims

    def newest_claim(self) -> Claim | None:
        return claims.newest(self._records)

    def claims(self) -> dict[int, Claim]:
        return claims.all_claims(self._records)

    def claim(self, claim: Claim) -> None:
        """Claims (A3, A4, A5). Superseded with the claim that stands; NotOnRecord if the parent has been expired meanwhile.

        A parent in another job's prefix is protected by a branch reference first (D6).
        """
        claims.claim(self._records, claim, lambda uid: self.for_job(uid)._records)

    # What exists

    def ever_committed(self) -> bool:
        """C1: whether a commit record or a tombstone exists below the prefix, on whatever lineage."""
        return discover.ever_committed(self._records)

    def earlier_jobs(self) -> tuple[str, ...]:
        """Uids of other jobs of this namespace and name that have checkpoints (A9)."""
        found = discover.uids(self.bucket, self.namespace, self.job)
        return tuple(uid for uid in found if uid != self.job_uid and discover.has_commits(self.for_job(uid)._records))

    def resolve(self, order: RestoreOrder, attempt: int) -> Resolution:
        """What `attempt` may continue: usable commits of the lineage before it, newest first, with the order's exclusions (A7, C1, C2, D3).

        Reads at most `resolve.ENOUGH` commit records and no manifest, and asks about no save that the order excludes. How many ranks made a
        commit does not matter here.
        """
        if lowest := resolve.floor(order):
            # The usual case, at a cost that does not grow with the number of attempts: older ones are followed only if nothing is found here.
            near = self._saves_on(self._spans_before(attempt, lowest), order)
            if (found := resolve.select(order, self.job_uid, near)).candidates:
                return Resolution(tuple(found.candidates), tuple(found.rejections), order.fresh, "")
        before = self._spans_before(attempt)
        source = self
        if order.resume_from_uid and order.resume_from_uid not in {s.job_uid for s in before}:
            # Not continued yet. Once a claim has, its own lineage leads there, and the order says nothing more.
            source = self.for_job(order.resume_from_uid)
            before = source._spans_before(layout.MAX_NUMBER)
        selection = resolve.select(order, self.job_uid, self._saves_on(before, order))
        if not selection.candidates:
            # Nothing can be used: now everything is looked at, so that each one is named with its reason (C1).
            selection = resolve.select(order, self.job_uid, self._saves_on(before))
        fresh, reason = order.fresh, ""
        if not selection.candidates:
            ever = source.ever_committed()
            reason = resolve.explain(
                order, selection, ever_committed=ever, source=f"{self.namespace}/{self.job} ({source.job_uid})"
            )
            foreign = any(s.job_uid != self.job_uid for s in before)
            if not (order.fresh or order.pinned or ever or foreign or source is not self):
                fresh, reason = self._first_start(before, reason)
        return Resolution(tuple(selection.candidates), tuple(selection.rejections), fresh, reason)

    def _first_start(self, before: list[Span], reason: str) -> tuple[bool, str]:
        """No checkpoint has ever been made here: whether to start from nothing (C1), or to ask about an earlier job first (A9)."""
        earlier = () if before else self.earlier_jobs()
        return (False, resolve.earlier_job_reason(earlier)) if earlier else (True, reason)

    def read_commit(self, ref: CheckpointRef) -> tuple[CommitRecord, str]:
        """The record and its exact text, proved by its own digest. Absent, also where a tombstone lies (B2); Corrupt."""
        record, text = self._records.commit(ref)
        if self._records.exists(layout.tombstone_key(ref)):
            raise Absent(f"checkpoint {ref} is expired")
        return record, text

    def newest_commit(self, attempt: int) -> CommitRecord | None:
        """Of this attempt's own checkpoints, or None."""
        for ref in inventory.saves(self._records, attempt):
            if inventory.state(self._records, ref).exists:
                return self._records.commit(ref)[0]
        return None

    def read_manifest(self, record: CommitRecord, rank: int) -> RankManifest:
        """Verified against the digest in `record` (B3). Corrupt, Absent. Also for the record of another job of this name."""
        return self.for_job(record.job_uid)._records.manifest(record, rank)

    # Chunks, manifests, commit

    def put_chunk(self, ref: CheckpointRef, digest: str, view: memoryview, *, bound: Bound | None = None) -> bool:
        """Create-only, with a checksum that the server verifies (B6); False if it was there. `view` must not change meanwhile. Any thread.

        Unavailable at the end of `bound`, where the backend can cut a request. Where the store verifies nothing, what was there is read and compared. If it is
        not what its name says, it is what is left of a request that was cut: nothing valid can refer to it, so it is taken away and the error is
        Unavailable, after which the chunk is sent again.
        """
        key = self.prefix + layout.chunk_key(ref, digest)
        try:
            self.bucket.create(key, view, bound=bound)
        except AlreadyExists:
            if not self.bucket.verifies_uploads:
                self._proved_or_removed(Chunk(digest, view.nbytes, ref), key)
            return False
        return True

    def chunk_sizes(self, ref: CheckpointRef) -> dict[str, int]:
        """The chunks that lie under a save by now, committed or not, by name. What it does not show may be there all the same."""
        prefix = self.prefix + layout.checkpoint_prefix(ref) + "chunks/"
        found = {info.key.removeprefix(prefix): info.size for info in self.bucket.list(prefix)}
        self.bucket.settle(prefix)
        return found

    def _proved_or_removed(self, chunk: Chunk, key: str) -> None:
        try:
            self.get_chunk_into(chunk, memoryview(bytearray(chunk.length)))
        except Corrupt as e:
            self.bucket.delete([key])
            raise Unavailable(f"{e}; it has been removed") from e

    def get_chunk_into(self, chunk: Chunk, view: memoryview) -> None:
        """Fills `view` (exactly `chunk.length` bytes) and verifies it in this thread, while it is hot (C3). Absent, Corrupt: then `view` is garbage."""
        if view.nbytes != chunk.length:
            raise ValueError(f"the chunk has {chunk.length} bytes, the view {view.nbytes}")
        key = self.prefix + layout.chunk_key(chunk.at, chunk.digest)
        self.bucket.get_into(key, view)
        if digest(view) != chunk.digest:
            self.bucket.doubt()  # the next try must not end in the same way because of how the bytes came
            raise Corrupt(key, "the content does not fit the digest that names it")

    def create_manifest(self, manifest: RankManifest, *, bound: Bound | None = None) -> RankEntry:
        """Writes `rank-<r>.json`, after its chunks; returns what the commit record has to say about it. `bound`: as for a chunk."""
        return commits.create_manifest(self._records, manifest, bound=bound)

    def commit(self, record: CommitRecord, *, incarnation: str | None = None) -> str:
        """Makes the checkpoint exist; returns the record's exact text (with `check` filled in). Last, after every chunk and manifest is acknowledged.

        Superseded: a newer claim stands (A5), or another life of this attempt if `incarnation` is given (A4). NotOnRecord: before the claim (A6), after
        a newer save (A8), expired (D2), base gone (B4). AlreadyExists: another coordinator has committed this save with another text (E5).
        """
        if (record.namespace, record.job) != (self.namespace, self.job):
            raise ValueError(
                f"the commit record is of {record.namespace}/{record.job}, the store of {self.namespace}/{self.job}"
            )
        return commits.commit(self._records, record, incarnation=incarnation)

    # What was left on nodes (E6)

    def look_at(self, pending: Pending) -> inventory.SaveState:
        """Before anything of a pending part is sent. Superseded or NotOnRecord if it can be finished no more."""
        return unfinished.look(self._records, pending)

    def missing(self, manifests: Sequence[RankManifest]) -> list[tuple[int, int]]:
        """Of one save's manifests: (which, which of its chunks) that still have to be sent."""
        return unfinished.missing(self._records, manifests)

    def finish(self, pending: Pending) -> CommitRecord | None:
        """After its own manifests are there: the commit record once those of all ranks are, else None. Raises as `commit`, and Corrupt."""
        return unfinished.finish(self._records, pending, self.namespace, self.job)

    # Reports, verdicts, branches

    def write_report(self, report: AgentReport) -> None:
        """The last report of an agent (H4), under the attempt that it has joined (1 or more)."""
        self.bucket.put(self.prefix + layout.report_key(report.attempt, report.worker), codec.to_json(report))

    def read_reports(self, attempt: int) -> list[AgentReport]:
        """Reports of an attempt, by worker. One that cannot be read is left out: reports inform, nothing is decided by them alone."""
        folder = str(PurePosixPath(layout.report_key(attempt, 0)).parent)
        found = []
        for info in self.bucket.list_level(f"{self.prefix}{folder}/").objects:
            try:
                found.append(codec.from_json(AgentReport, self.bucket.get(info.key, max_bytes=codec.MAX_MESSAGE_BYTES)))
            except (Absent, Corrupt, ContractError):
                continue
        return sorted(found, key=lambda r: r.worker)

    def write_verdict(self, verdict: Verdict) -> None:
        """In the place of what the same check has found before."""
        verdicts.write(self._records, verdict)

    def read_verdicts(self, ref: CheckpointRef) -> list[Verdict]:
        """What checks have found, by name of the check; without those that cannot be read."""
        return verdicts.read(self._records, ref)

    def damaged(self) -> dict[CheckpointRef, str]:
        """What scrubs have found and nobody has mended. Lists everything that is stored."""
        return verdicts.damaged(self._records)

    def write_branch(self, branch: BranchRef) -> None:
        """Says, in this (the source's) prefix, that another job builds on a checkpoint here (D6). `claim` does it by itself."""
        claims.write_branch(self._records, branch)

    # Deletion

    def expire(
        self, ref: CheckpointRef, *, by_attempt: int, reason: str, in_use: Collection[CheckpointRef] = ()
    ) -> Expiry:
        """Deletes a checkpoint in the order of D2, or says why it is kept (D5, D6). Superseded if `by_attempt` is not the newest claim.

        `in_use`: bases of open saves and what is being restored, as far as the caller knows of them.
        """
        newest = self._newest_for(by_attempt)
        if why := collect.may_collect(newest, by_attempt):
            return Expiry(False, why, 0)
        lineage = self._spans(by_attempt)
        return collect.expire(self._records, ref, lineage=lineage, by_attempt=by_attempt, reason=reason, in_use=in_use)

    def sweep(self, *, attempt: int) -> SweepResult:
        """Removes what has no commit and can have none any more (D4), and finishes deletions that were cut short. For the newest claim only."""
        newest = self._newest_for(attempt)
        if collect.may_collect(newest, attempt):
            return SweepResult(0, 0, (), ())
        self.bucket.discard_unfinished(self.prefix)
        return collect.sweep(self._records, attempt, lineage=list(self._spans(attempt)))

    def discard(self, ref: CheckpointRef, *, sent: bool) -> int:
        """Removes what a save of the newest claim's attempt has stored that its own coordinator has given up (A8, D4). `sent`: its commit record was on
        the way and may still arrive. Returns the bytes freed. Superseded; Full if there is no room for the tombstone that this takes."""
        if collect.may_collect(self._newest_for(ref.attempt), ref.attempt):
            return 0
        return collect.discard(self._records, ref, sent=sent)

    # Lineage

    def lineage(self, attempt: int) -> tuple[Span, ...]:
        """The lineage of a claimed attempt (A7), newest first."""
        return tuple(self._spans(attempt))

    def stretches(self, attempt: int, *, oldest: int) -> tuple[Stretch, ...]:
        """The same with the time of each claim, within this job, back to attempt `oldest`: one read for each. Absent where a claim is missing."""
        found: list[Stretch] = []
        last_save = None
        while attempt >= oldest:
            claim = self._records.claim(attempt)
            found.append(Stretch(attempt, last_save, claim.created_at))
            if claim.parent is None or claim.parent.job_uid != self.job_uid:
                break
            attempt, last_save = claim.parent.attempt, claim.parent.save
        return tuple(found)

    def _newest_for(self, attempt: int) -> Claim | None:
        newest = self.newest_claim()
        if newest and newest.attempt > attempt:
            raise Superseded(newest)
        return newest

    def _spans(self, attempt: int) -> Iterator[Span]:
        return spans(self.job_uid, attempt, None, self._claim_of)

    def _spans_before(self, attempt: int, lowest: int = 0) -> list[Span]:
        """The lineage that `attempt` would continue: bounded by its own claim if it has one, else that of the newest claim before it.

        With `lowest` only the job's own, down to that attempt.
        """
        numbers = inventory.claimed(self._records)
        before = [n for n in numbers if n < attempt]
        lineage: Iterator[Span] = iter(())
        if attempt in numbers:
            lineage = itertools.islice(self._spans(attempt), 1, None)
        elif before:
            lineage = self._spans(before[-1])
        return [
            *itertools.takewhile(lambda s: not lowest or (s.job_uid == self.job_uid and s.attempt >= lowest), lineage)
        ]

    def _claim_of(self, job_uid: str, attempt: int) -> Claim | None:
        try:
            return self.for_job(job_uid)._records.claim(attempt)
        except Absent:
            return None

    def _saves_on(self, lineage: list[Span], order: RestoreOrder | None = None) -> Iterator[Found]:
        """Newest first. With `order` without those that it excludes anyway."""
        for span in lineage:
            records = self.for_job(span.job_uid)._records
            own = span.job_uid == self.job_uid
            known = resolve.look_at(order, span, own=own) if order else None
            for ref in inventory.saves(records, span.attempt) if known is None else known:
                if not span.holds(span.job_uid, ref) or (
                    order and resolve.is_excluded(order, span.job_uid, ref, own=own)
                ):
                    continue
                state = inventory.state(records, ref)
                verdict = functools.partial(verdicts.failed, records, state)
                read = functools.partial(records.commit, ref)
                yield Found(span.job_uid, ref, state.committed, state.expired, read, verdict)
