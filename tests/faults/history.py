"""What a job has committed so far, looked at again and again while it is disturbed: no commit changes, none is torn, none goes back (invariants I1, I2, I3)."""

from pathlib import Path

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CommitRecord
from tests.agent.conftest import Gang
from tests.agent.fake_trainer import state


class History:
    """Raises AssertionError in words."""

    def __init__(self, gang: Gang) -> None:
        self._gang = gang
        self._texts: dict[CheckpointRef, str] = {}

    def look(self) -> None:
        """Every commit record that is there, with every byte that it names."""
        store, found = self._gang.store, set()
        for path in sorted(self._gang.bucket.glob(f"ns/job-{self._gang.job_uid}/checkpoints/*/*/commit.json")):
            ref = CheckpointRef(int(path.parts[-3]), int(path.parts[-2]))
            record, text = store.read_commit(ref)
            found.add(ref)
            if ref in self._texts:
                assert self._texts[ref] == text, f"{ref} has changed"
            else:
                self._texts[ref] = text
                self._is_whole(record)
        assert set(self._texts) <= found, "an acknowledged checkpoint is gone"
        self._never_back()

    def _is_whole(self, record: CommitRecord) -> None:
        store, boundary = self._gang.store, record.progress.boundary
        for entry in record.ranks:
            manifest = store.read_manifest(record, entry.rank)
            image = memoryview(bytearray(manifest.image_bytes))
            at = 0
            for chunk in manifest.chunks:
                store.get_chunk_into(chunk, image[at : at + chunk.length])
                at += chunk.length
            assert image == state(entry.rank, boundary), (
                f"{record.ref}: rank {entry.rank} is not at boundary {boundary}"
            )

    def _never_back(self) -> None:
        """Along the lineage of the newest claim boundaries grow with attempt and save."""
        store = self._gang.store
        newest = store.newest_claim()
        if newest is None:
            return
        line = []
        for span in store.lineage(newest.attempt):
            line += [r for r in self._texts if span.holds(self._gang.job_uid, r)]
        boundaries = [store.read_commit(ref)[0].progress.boundary for ref in sorted(line)]
        assert boundaries == sorted(boundaries), f"{sorted(line)} are at {boundaries}"

    @property
    def newest(self) -> int:
        """Boundary of the newest commit."""
        return max((b for _, b, _ in self._gang.commits()), default=0)


def ranks_of(agent: int) -> list[int]:
    """Process ids of the ranks that an agent has started."""
    try:
        return [int(p) for p in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
    except OSError:
        return []
