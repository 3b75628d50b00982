"""`file:///directory`: a bucket on a directory that several processes, or several machines through a shared file system, use at the same time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from holdfast_store import mounts
from holdfast_store.bound import Bound
from holdfast_store.bucket import Buffer, Folders, Level, ObjectInfo, check_key, check_prefix
from holdfast_store.errors import Corrupt, Misconfigured
from holdfast_store.folders import Folder


class FileBucket:
    """Create-only is link(2), overwrite is rename(2), durable is fsync of file and folder (B9). Tries once."""

    verifies_uploads = True  # there is no way on which bytes could be damaged: they are written by this machine

    def __init__(self, root: Path) -> None:
        self._folder = Folder(root)

    @classmethod
    def from_uri(cls, uri: str) -> "FileBucket":
        parts = urlsplit(uri)
        path = unquote(parts.path)
        if parts.netloc or parts.query or parts.fragment or not path.startswith("/") or "\0" in path:
            raise Misconfigured(f"storage uri {uri!r}: write file:///absolute/directory, with three slashes")
        return cls(Path(path))

    @property
    def uri(self) -> str:
        return f"file://{self._folder.root}"

    def caveat(self) -> str:
        """What this file system may get wrong, in words; for the probe (B8)."""
        return mounts.caveat(mounts.here(self._folder.root))

    def check(self) -> None:
        self._folder.check()

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        self._folder.write(check_key(key), data, create_only=True)

    def put(self, key: str, data: Buffer) -> None:
        self._folder.write(check_key(key), data, create_only=False)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return self._folder.read(check_key(key), max_bytes=max_bytes)

    def get_into(self, key: str, view: memoryview) -> None:
        size = self._folder.size(check_key(key))
        if size != view.nbytes:
            raise Corrupt(key, f"{size} bytes where {view.nbytes} were written")
        self._folder.read_range_into(key, view, offset=0, whole_bytes=view.nbytes)

    def doubt(self) -> None:
        """Nothing is kept."""

    def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, self._folder.size(check_key(key)))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for key, size in self._folder.walk(check_prefix(prefix)):
            yield ObjectInfo(key, size)

    def settle(self, prefix: str) -> None:
        self._folder.settle(check_prefix(prefix))

    def list_level(self, prefix: str) -> Level:
        folders, files = self._folder.level(check_prefix(prefix))
        return Level(tuple(folders), tuple(ObjectInfo(key, size) for key, size in files))

    def list_folders(self, prefix: str) -> Folders:
        return [*self.list_level(prefix).folders]

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._folder.delete(check_key(key))

    def discard_unfinished(self, prefix: str) -> int:
        return self._folder.discard_unfinished(check_prefix(prefix))
