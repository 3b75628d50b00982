"""The bucket behind `gs://` and `az://`: everything that obstore does alike for both. `gcs` and `azure` say how to open it and what answers mean.

obstore can send no checksum to these two services that they would compare (B6). What stands in its place: TLS proves each byte on its way, the services
publish nothing of a request that ends early, every record (claim, manifest, commit, tombstone: all that decides whether a checkpoint exists) is read back
and compared before `create` returns, a chunk that is found where ours should go is compared with ours (`JobStore.put_chunk`), and every chunk is proved by
its digest when it is read. The probe says so in the job's status. Tries once: `retry.Persistent` does the rest.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import obstore
import obstore.exceptions

from holdfast_store import cut
from holdfast_store.bound import Bound
from holdfast_store.bucket import Buffer, Folders, Level, ObjectInfo, Room, check_key, check_prefix, got, got_into
from holdfast_store.cloud_answers import Words, classify, credential_problem, read
from holdfast_store.errors import Absent, Corrupt, Misconfigured, StoreError, Unavailable
from holdfast_store.patience import Pace
from holdfast_store.plain_get import Stalled
from holdfast_store.s3_border import bordered
from holdfast_store.s3_get import download

READ_BACK_BYTES = 4 << 20
"""Larger objects are chunks, which their names prove."""
REQUEST_SECONDS = 120.0
_DELETE_AT_ONCE = 256
"""So many blobs fit into one request to Azure."""
_ERRORS = (obstore.exceptions.BaseError, OSError, ValueError)
_NOBODY = "holdfast-no-such-object"
"""No part of any layout has this name: what the service says about it shows that it is the service which speaks."""


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """Where, and how long to wait. Time-outs are per request."""

    scheme: str
    bucket: str
    prefix: str
    """Empty, or ending in "/"."""
    where: str
    """For messages: URI, account and endpoint."""
    words: Words
    no_such_version: Mapping[str, str]
    """A version that no object has, as obstore wants it. For the probe (B8)."""


class CloudBucket:
    """One bucket or container and prefix. Thread-safe."""

    verifies_uploads = False
    unverified_note = (
        "uploads carry no checksum that this service compares: records are read back, "
        "and a chunk that was damaged on its way is found when it is read"
    )

    def __init__(self, settings: CloudSettings, store: Any) -> None:
        self.settings = settings
        self._store = store
        self._seen = threading.Event()
        self._pace = Pace(longest=REQUEST_SECONDS)

    @property
    def uri(self) -> str:
        s = self.settings
        return f"{s.scheme}://{s.bucket}/{s.prefix}".rstrip("/")

    def check(self) -> None:
        """Lists the prefix's own level; nothing there is believed only of a service that also knows what it has not (B7)."""
        level = self._ask(lambda: obstore.list_with_delimiter(self._store))
        if not level["objects"] and not level["common_prefixes"]:
            self._knows_what_it_has_not("")
        self._seen.set()

    @bordered
    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        view = memoryview(data).cast("B")
        self._put(check_key(key), view, "create", bound)
        if view.nbytes <= READ_BACK_BYTES:
            self._read_back(key, view)

    @bordered
    def put(self, key: str, data: Buffer) -> None:
        self._put(check_key(key), memoryview(data).cast("B"), "overwrite")

    @bordered
    def replace_missing_version(self, key: str, data: Buffer) -> None:
        """Overwrites a version that does not exist: AlreadyExists, unless the service ignores conditions. For the probe (B8)."""
        self._put(check_key(key), memoryview(data).cast("B"), dict(self.settings.no_such_version))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return got(key, max_bytes, self._download)

    def get_into(self, key: str, view: memoryview) -> None:
        got_into(key, view, self._download)

    @bordered
    def doubt(self) -> None:
        """Nothing is kept."""

    def head(self, key: str) -> ObjectInfo:
        check_key(key)
        try:
            return ObjectInfo(key, obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            # A HEAD has no body, so its 404 cannot say what is missing. A GET can.
            return ObjectInfo(key, self._ask(lambda: obstore.get(self._store, key), key).meta["size"])
        except _ERRORS as e:
            raise self._wrapped(key, e) from e

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        inside = check_prefix(prefix).rstrip("/") or None
        found = self._ask_again(
            prefix,
            lambda: [each for page in obstore.list(self._store, inside) for each in page],
            lambda found: not found,
        )
        return iter([ObjectInfo(each["path"], each["size"]) for each in found])

    def settle(self, prefix: str) -> None:
        """An object is listed once it lasts."""

    def list_level(self, prefix: str) -> Level:
        inside = check_prefix(prefix).rstrip("/") or None
        found = self._ask_again(
            prefix,
            lambda: obstore.list_with_delimiter(self._store, inside),
            lambda level: not level["objects"] and not level["common_prefixes"],
        )
        folders = sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])
        objects = sorted((ObjectInfo(each["path"], each["size"]) for each in found["objects"]), key=lambda o: o.key)
        return Level(tuple(folders), tuple(objects))

    def list_folders(self, prefix: str) -> Folders:
        return [*self.list_level(prefix).folders]

    @bordered
    def delete(self, keys: Sequence[str]) -> None:
        names = [check_key(key) for key in keys]
        for start in range(0, len(names), _DELETE_AT_ONCE):
            batch = names[start : start + _DELETE_AT_ONCE]
            try:
                obstore.delete(self._store, batch)
            except FileNotFoundError:
                # One that is absent hides what became of the others, so each is deleted by itself.
                for name in batch:
                    self._delete_one(name)
            except _ERRORS as e:
                raise self._wrapped(batch[0], e) from e

    def discard_unfinished(self, prefix: str) -> int:
        """0: single PUTs leave nothing behind (J3)."""
        return 0

    def _delete_one(self, key: str) -> None:
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            self._see()  # else it may be the bucket that is missing
        except _ERRORS as e:
            raise self._wrapped(key, e) from e

    def _put(self, key: str, view: memoryview, mode: Any, bound: Bound | None = None) -> None:
        try:
            cut.put(self._store, key, view, mode, bound)
        except TimeoutError as e:
            allowed = bound.seconds if bound is not None else 0.0
            raise Unavailable(f"{key} at {self.uri}: no answer within {allowed:.1f} s") from e
        except _ERRORS as e:
            raise self._wrapped(key, e) from e

    def _read_back(self, key: str, view: memoryview) -> None:
        """What lies there now is ours alone: the create has been confirmed. A damaged one is taken away again, so that it can be written once more."""
        try:
            if self.get(key, max_bytes=view.nbytes) == view:
                return
        except (Absent, Corrupt):
            pass
        self.delete([key])
        raise Unavailable(f"{key} at {self.settings.where}: what was stored is not what was sent; it has been removed")

    @bordered
    def _download(self, key: str, room: Room) -> None:
        try:
            done, size = download(self._store, key, room, self._pace)
        except Stalled as e:
            raise Unavailable(f"{key} at {self.settings.where}: {e}") from e
        except _ERRORS as e:
            raise self._wrapped(key, e) from e
        if done > size:
            raise Corrupt(key, f"more than the {size} bytes that were announced")
        if done != size:
            raise Unavailable(f"{key} at {self.settings.where}: the answer ended after {done} of {size} bytes")

    @bordered
    def _ask(self, question: Callable[[], Any], prefix: str = "") -> Any:
        try:
            return question()
        except _ERRORS as e:
            raise self._wrapped(prefix, e) from e

    def _ask_again(self, prefix: str, question: Callable[[], Any], is_empty: Callable[[Any], bool]) -> Any:
        """A listing. obstore takes any well-formed answer of status 200, also a gateway's page, for an empty one, and an empty one means "no checkpoint
        yet" (B7, C1). So it is believed only if the service names an object that it has not, and then says the same again.
        """
        found = self._ask(question, prefix)
        if not is_empty(found):
            return found
        self._see()
        self._knows_what_it_has_not(prefix)
        return self._ask(question, prefix)

    def _knows_what_it_has_not(self, prefix: str) -> None:
        key = f"{prefix}{_NOBODY}"
        try:
            obstore.get(self._store, key)
        except _ERRORS as e:
            error = self._read(key, e)
            if isinstance(error, Absent):
                return
            raise error from e
        raise Unavailable(
            f"{self.settings.where}: an object that nobody wrote is there; is a proxy or a gateway in between?"
        )

    def _see(self) -> None:
        if not self._seen.is_set():
            self.check()

    def _wrapped(self, key: str, error: Exception) -> StoreError:
        found = self._read(key, error)
        if isinstance(found, Absent):
            self._see()  # absence is believed after the bucket has been seen once (B7)
        return found

    def _read(self, key: str, error: Exception) -> StoreError:
        s, text = self.settings, str(error)
        if problem := credential_problem(text, s.words, where=s.where):
            return problem
        return classify(read(text), s.words, key=key, where=s.where)


def client_options(*, http: bool, ca: bytes | None) -> dict[str, Any]:
    """For obstore; `http` lets it speak without TLS."""
    options: dict[str, Any] = {
        "allow_http": http,
        "connect_timeout": timedelta(seconds=5),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "user_agent": "holdfast",
    }
    return options | ({"root_certificate": ca} if ca else {})


def opened(make: Callable[[], Any], where: str) -> Any:
    """Makes obstore's store. It reads files of credentials at once, so that a wrong one is Misconfigured here and not a failed request later."""
    try:
        return make()
    except _ERRORS as e:
        said = " ".join(str(e).split("Debug source")[0].split())[:300]
        raise Misconfigured(f"{where}: {said}; correct the credentials or spec.checkpoint.storage") from e
