"""Damages a checkpoint while it is being written, as a failing disk would: flips one bit in every chunk of a save, below the S3 server's back.

The files are changed in the server's data directory, so neither the client nor the server's checksums see it happen; only the digest in the rank
manifest can tell (protocol C3).
"""

import threading
from pathlib import Path


class Damager:
    """Watches a bucket's directory and flips a bit in every chunk that appears under a save that was not there when the watch began.

    Runs in a thread of the demo; `stop()` ends it. `saves` are the checkpoint directories it touched.
    """

    def __init__(self, directory: Path, job_uid: str) -> None:
        self._directory, self._job_uid = directory, job_uid
        self._known = set(self._save_directories())
        self._done: set[Path] = set()
        self._stop = threading.Event()
        self.saves: set[str] = set()
        self._thread = threading.Thread(target=self._watch, name="damager", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _save_directories(self) -> list[Path]:
        return [d for d in self._directory.glob(f"**/*-{self._job_uid}/checkpoints/*/*") if d.is_dir()]

    def _watch(self) -> None:
        target: Path | None = None
        while not self._stop.wait(0.005):
            if target is None:
                new = [d for d in self._save_directories() if d not in self._known]
                target = min(new, default=None)
                continue
            for chunk in (target / "chunks").glob("*"):
                if chunk not in self._done and chunk.is_file() and chunk.stat().st_size:
                    self._flip(chunk)
                    self.saves.add(f"{int(target.parent.name)}/{int(target.name)}")

    def _flip(self, chunk: Path) -> None:
        with chunk.open("r+b") as f:
            f.seek(chunk.stat().st_size // 2)
            byte = f.read(1)
            f.seek(-1, 1)
            f.write(bytes([byte[0] ^ 1]))
        self._done.add(chunk)
