"""`s3://bucket/prefix`: obstore moves the bytes (without TLS s3_get.py fetches them), boto3 brings credentials and asks about the bucket.

Three rules of B6 and J3 stand in `_put`: one object is one PUT, never multipart (`use_multipart=False`); every PUT carries a CRC64NVME that the server
compares, so that a request cut in the middle leaves nothing; the payload itself is not hashed for the signature, which is safe only together with that
checksum. Tries once: `retry.Persistent` does the rest.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import botocore.config
import botocore.exceptions
import obstore
import obstore.exceptions
import obstore.store

from holdfast_api.config import StorageConfig
from holdfast_store import cut
from holdfast_store.bound import Bound
from holdfast_store.bucket import Buffer, Folders, Level, ObjectInfo, Room, check_key, check_prefix, got, got_into
from holdfast_store.errors import Absent, Corrupt, Denied, Misconfigured, StoreError, Unavailable
from holdfast_store.patience import Pace
from holdfast_store.places import bucket_and_prefix, ca_from
from holdfast_store.plain_get import Broken, Stalled, Unusual
from holdfast_store.s3_answers import EXPIRED, Answer, classify, read_body, read_text
from holdfast_store.s3_border import border, bordered, checked_endpoint, is_address
from holdfast_store.s3_credentials import NO_CREDENTIALS, CredentialProvider, session_from
from holdfast_store.s3_get import Signed, download

CHECKSUM = "CRC64NVME"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_NAMES = "a bucket (3 to 63 lower-case letters, digits, dots and dashes)"
_DELETE_AT_ONCE = 1000
_CONNECTIONS = 32
"""As many threads ask at once at most: the agent's for metadata, and the readers of manifests."""
_ERRORS = (obstore.exceptions.BaseError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where and how. Time-outs are per request; a chunk of 64 MiB passes in `request_seconds` at 0.6 MB/s."""

    bucket: str
    prefix: str
    """Empty, or ending in "/"."""
    endpoint: str
    """Empty: AWS."""
    region: str
    virtual_host: bool = False
    """The bucket is the first part of the host's name, not of the path."""
    encryption: str = ""
    """`AES256`, `aws:kms`, or empty: what the bucket does by default."""
    kms_key_id: str = ""
    connect_seconds: float = 5.0
    request_seconds: float = 120.0

    @property
    def where(self) -> str:
        return f"s3://{self.bucket}/{self.prefix} ({self.endpoint or 'AWS'}, region {self.region})"


def settings_from(storage: StorageConfig, environ: Mapping[str, str]) -> S3Settings:
    """Reads the URI and, where the configuration is silent, the usual variables. Misconfigured names what to correct."""
    bucket, prefix = bucket_and_prefix(storage.uri, "s3", _BUCKET, _NAMES)
    given = {
        "spec.checkpoint.storage.endpoint": storage.endpoint,
        "AWS_ENDPOINT_URL_S3": environ.get("AWS_ENDPOINT_URL_S3"),
        "AWS_ENDPOINT_URL": environ.get("AWS_ENDPOINT_URL"),
    }
    endpoint = next((checked_endpoint(value, field) for field, value in given.items() if value), "")
    region = storage.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    virtual = _virtual_host(storage.addressing, bucket, endpoint)
    encryption = _encryption(storage)
    return S3Settings(bucket, prefix, endpoint, region, virtual, encryption, storage.kms_key_id)


def _virtual_host(addressing: str, bucket: str, endpoint: str) -> bool:
    """By default AWS's own way there, and the path with everybody else, whose host names often have no names below them."""
    if addressing not in ("", "path", "virtual"):
        raise Misconfigured(f"spec.checkpoint.storage.s3.addressing {addressing!r}: write Path or Virtual")
    if addressing != "virtual":
        return not addressing and not endpoint and "." not in bucket
    host = urlsplit(endpoint).hostname or ""
    if is_address(host):
        raise Misconfigured(
            f"spec.checkpoint.storage.s3.addressing Virtual: the endpoint {endpoint!r} is an address, which has no names below it; write Path"
        )
    if "." in bucket and not endpoint.startswith("http://"):
        raise Misconfigured(
            f"spec.checkpoint.storage.s3.addressing Virtual: no certificate fits a bucket with dots in its name ({bucket!r}); write Path"
        )
    return True


def _encryption(storage: StorageConfig) -> str:
    if storage.encryption not in ("", "AES256", "aws:kms"):
        raise Misconfigured(f"spec.checkpoint.storage.s3.encryption {storage.encryption!r}: write SSE-S3 or SSE-KMS")
    if storage.kms_key_id and storage.encryption != "aws:kms":
        raise Misconfigured(
            "spec.checkpoint.storage.s3.kmsKeyId is only read with encryption: SSE-KMS; add it, or remove the key"
        )
    return storage.encryption


class S3Bucket:
    """One bucket and prefix. Thread-safe."""

    verifies_uploads = True

    def __init__(
        self, settings: S3Settings, session: Any, *, ca: bytes | None = None, ca_path: str | None = None
    ) -> None:
        self.settings = settings
        self._provider = CredentialProvider(session)
        self._session = session
        self._ca, self._ca_path = ca, ca_path
        self._checked = threading.Event()
        self._making = threading.Lock()
        self._client: Any = None
        self._pace = Pace(longest=settings.request_seconds)
        self._short_way = None
        if not settings.virtual_host:
            self._short_way = Signed.to(settings.endpoint, settings.bucket, session, settings.region)
        with border(settings.where):
            self._store = _obstore(settings, self._provider, ca)

    @classmethod
    def from_config(cls, storage: StorageConfig, environ: Mapping[str, str]) -> "S3Bucket":
        settings = settings_from(storage, environ)
        try:
            session = session_from(environ, region=settings.region)
        except botocore.exceptions.BotoCoreError as e:
            raise Misconfigured(f"AWS configuration: {e}") from e
        return cls(
            settings, session, ca=ca_from(environ, "AWS_CA_BUNDLE"), ca_path=environ.get("AWS_CA_BUNDLE") or None
        )

    @property
    def uri(self) -> str:
        return f"s3://{self.settings.bucket}/{self.settings.prefix}".rstrip("/")

    @bordered
    def check(self) -> None:
        """Lists one key. Not HeadBucket: its answers have no body, and a 404 without a code may as well be a wrong access key (B7)."""
        try:
            self.administration().list_objects_v2(Bucket=self.settings.bucket, Prefix=self.settings.prefix, MaxKeys=1)
        except botocore.exceptions.ClientError as e:
            raise self._refusal("", _boto_answer(e)) from e
        except botocore.exceptions.NoCredentialsError as e:
            raise self._without_credentials() from e
        except (botocore.exceptions.BotoCoreError, OSError) as e:
            raise self._refusal("", read_text(str(e))) from e
        self._checked.set()

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        self._put(check_key(key), data, "create", bound)

    def put(self, key: str, data: Buffer) -> None:
        self._put(check_key(key), data, "overwrite")

    def replace_missing_version(self, key: str, data: Buffer) -> None:
        """Overwrites a version that does not exist: AlreadyExists, unless the server ignores conditions. For the probe (B8)."""
        self._put(check_key(key), data, {"e_tag": '"00000000000000000000000000000000"'})

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return got(key, max_bytes, self._download)

    def get_into(self, key: str, view: memoryview) -> None:
        if self._short_way is not None and self._fill(self._short_way, check_key(key), view):
            return

        got_into(key, view, self._download)

    def doubt(self) -> None:
        if self._short_way is not None:
            self._short_way.forget()

    @bordered
    def head(self, key: str) -> ObjectInfo:
        check_key(key)
        try:
            return ObjectInfo(key, obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            # A HEAD has no body, so its 404 cannot say what is missing. A GET can.
            return ObjectInfo(key, self._open(key).meta["size"])
        except _ERRORS as e:
            raise self._wrapped(key, e) from e

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages(check_prefix(prefix), delimiter=""):
            yield from self._objects(page)

    def settle(self, prefix: str) -> None:
        """An object is listed once it lasts."""

    def list_level(self, prefix: str) -> Level:
        folders: list[str] = []
        objects: list[ObjectInfo] = []
        for page in self._pages(check_prefix(prefix), delimiter="/"):
            folders += [p["Prefix"].rstrip("/").rpartition("/")[2] for p in page.get("CommonPrefixes", ())]
            objects += self._objects(page)
        return Level(tuple(sorted(folders)), tuple(sorted(objects, key=lambda o: o.key)))

    def _objects(self, page: dict[str, Any]) -> Iterator[ObjectInfo]:
        for found in page.get("Contents", ()):
            yield ObjectInfo(found["Key"].removeprefix(self.settings.prefix), found["Size"])

    def _pages(self, prefix: str, delimiter: str) -> Iterator[dict[str, Any]]:
        """Pages of a listing, each proved to be one. By boto3, because obstore takes any well-formed answer of status 200, an error body or a
        gateway's page, for an empty listing, and an empty listing means "no checkpoint yet" (B7, C1).
        """
        client = self.administration()
        question = {"Bucket": self.settings.bucket, "Prefix": self.settings.prefix + prefix, "Delimiter": delimiter}
        while True:
            try:
                with border(self.settings.where):
                    page: dict[str, Any] = client.list_objects_v2(**question)
            except botocore.exceptions.ClientError as e:
                raise self._refusal(prefix, _boto_answer(e)) from e
            except botocore.exceptions.NoCredentialsError as e:
                raise self._without_credentials() from e
            except (botocore.exceptions.BotoCoreError, OSError) as e:
                raise self._refusal(prefix, read_text(str(e))) from e
            if page.get("Name") != self.settings.bucket or "IsTruncated" not in page:
                raise Unavailable(
                    f"{self.settings.where}: the answer to a listing is no listing; is a proxy or a gateway in between?"
                )
            yield page
            if not page["IsTruncated"]:
                return
            question["ContinuationToken"] = page["NextContinuationToken"]

    def list_folders(self, prefix: str) -> Folders:
        return [*self.list_level(prefix).folders]

    @bordered
    def delete(self, keys: Sequence[str]) -> None:
        names = [check_key(key) for key in keys]
        for start in range(0, len(names), _DELETE_AT_ONCE):
            batch = names[start : start + _DELETE_AT_ONCE]
            try:
                obstore.delete(self._store, batch)
            except _ERRORS as e:
                error = self._wrapped(batch[0], e)
                if not isinstance(error, Absent):
                    raise error from e

    def discard_unfinished(self, prefix: str) -> int:
        """0: single PUTs leave nothing behind (J3), so there are no multipart uploads of ours to abort."""
        return 0

    @bordered
    def refuses_wrong_checksum(self, key: str) -> bool:
        """Whether the server compares the checksum of an upload with what it received. For the probe (B8)."""
        target = {"Bucket": self.settings.bucket, "Key": self.settings.prefix + check_key(key)}
        try:
            self.administration().put_object(**target, Body=b"holdfast", ChecksumCRC64NVME="AAAAAAAAAAA=")
        except botocore.exceptions.ClientError as e:
            answer = _boto_answer(e)
            if answer.code in ("BadDigest", "XAmzContentChecksumMismatch", "InvalidDigest") or answer.status == 400:
                return True
            raise self._refusal(key, answer) from e
        except (botocore.exceptions.BotoCoreError, OSError) as e:
            raise Unavailable(f"{self.settings.where}: {e}") from e
        return False

    @bordered
    def administration(self) -> Any:
        """The boto3 client for questions about the bucket, which any thread may use. One: making it takes longer than most questions, and each would
        open connections of its own."""
        s = self.settings
        config = botocore.config.Config(
            connect_timeout=s.connect_seconds,
            read_timeout=30,
            retries={"total_max_attempts": 1},
            max_pool_connections=_CONNECTIONS,
            s3={"addressing_style": "virtual" if s.virtual_host else "path"},
        )
        with self._making:  # a session, unlike a client, is not for several threads
            if self._client is None:
                self._client = self._session.client(
                    "s3", endpoint_url=s.endpoint or None, verify=self._ca_path, config=config
                )
            return self._client

    def _without_credentials(self) -> Denied:
        """The next question is asked by a new client: one that was made without credentials never looks for them again."""
        with self._making:
            self._client = None
        return Denied(NO_CREDENTIALS)

    @bordered
    def _put(self, key: str, data: Buffer, mode: Any, bound: Bound | None = None) -> None:
        view = memoryview(data).cast("B")
        try:
            cut.put(self._store, key, view, mode, bound)
        except TimeoutError as e:
            allowed = bound.seconds if bound is not None else 0.0
            raise Unavailable(f"{key} at {self.settings.where}: no answer within {allowed:.1f} s") from e
        except _ERRORS as e:
            raise self._wrapped(key, e) from e

    @bordered
    def _open(self, key: str) -> Any:
        try:
            return obstore.get(self._store, key)
        except _ERRORS as e:
            raise self._wrapped(key, e) from e

    @bordered
    def _download(self, key: str, room: Room) -> None:
        try:
            done, size = download(self._store, key, room, self._pace)
        except Stalled as e:
            raise self._unanswered(key, e) from e
        except _ERRORS as e:
            raise self._wrapped(key, e) from e
        if done > size:
            raise Corrupt(key, f"more than the {size} bytes that were announced")
        if done != size:
            raise Unavailable(f"{key} at {self.settings.where}: the answer ended after {done} of {size} bytes")

    def _fill(self, way: Signed, key: str, view: memoryview) -> bool:
        """False where the answer is for obstore to read."""
        try:
            refusal = way.fill(self.settings.prefix + key, view, self._pace)
        except (Stalled, Broken) as e:
            raise self._unanswered(key, e) from e
        except (Unusual, botocore.exceptions.BotoCoreError, OSError, ValueError):
            return False
        if refusal is not None:
            raise self._refusal(key, read_body(refusal.status, refusal.body))
        return True

    def _unanswered(self, key: str, error: Exception) -> Unavailable:
        return Unavailable(f"{key} at {self.settings.where}: {error}")

    def _wrapped(self, key: str, error: Exception) -> StoreError:
        if isinstance(error, obstore.exceptions.UnauthenticatedError) and self._provider.problem:
            kind = Denied if self._provider.problem == NO_CREDENTIALS else Unavailable
            return kind(self._provider.problem)
        return self._refusal(key, read_text(str(error)))

    def _with_newer_credentials(self) -> None:
        """obstore keeps what it was given until it says that it ends; another store asks at once."""
        with self._making:
            self._client = None
            self._store = _obstore(self.settings, self._provider, self._ca)

    def _refusal(self, key: str, answer: Answer) -> StoreError:
        error = classify(answer, key=key, where=self.settings.where)
        if answer.code in EXPIRED and self._provider.has_newer():
            # What was used had expired on its way; it is tried again with what the chain has now, so nothing is denied (faults 46).
            self._with_newer_credentials()
            return Unavailable(f"{error}; newer credentials are there and are used from now on")
        if isinstance(error, Absent) and not self._checked.is_set():
            # Some servers answer NoSuchKey for a bucket that does not exist: absence is believed after the bucket has been seen once (B7).
            self.check()
        return error


def _obstore(settings: S3Settings, provider: CredentialProvider, ca: bytes | None) -> Any:
    options: dict[str, Any] = {
        "allow_http": settings.endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=settings.connect_seconds),
        "timeout": timedelta(seconds=settings.request_seconds),
        "user_agent": "holdfast",
    }
    if ca:
        options["root_certificate"] = ca
    place: dict[str, Any] = {"endpoint": _host_of(settings)} if settings.endpoint else {}
    if settings.encryption:
        place["server_side_encryption"] = settings.encryption
    if settings.kms_key_id:
        place["sse_kms_key_id"] = settings.kms_key_id
    return obstore.store.S3Store(
        settings.bucket,
        prefix=settings.prefix.rstrip("/") or None,
        region=settings.region,
        virtual_hosted_style_request=settings.virtual_host,
        checksum_algorithm=CHECKSUM,
        unsigned_payload=True,
        conditional_put="etag",
        credential_provider=provider,
        client_options=options,
        # Retries are ours (`retry.Persistent`): bounded by the caller's deadline, and a create that is repeated is looked at.
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=settings.request_seconds)},
        **place,
    )


def _host_of(settings: S3Settings) -> str:
    """obstore wants the bucket in the endpoint where it is part of the host's name; boto3 puts it there by itself."""
    if not settings.virtual_host:
        return settings.endpoint
    scheme, _, host = settings.endpoint.partition("://")
    return f"{scheme}://{settings.bucket}.{host}"


def _boto_answer(error: Any) -> Answer:
    found = error.response
    code, message = str(found.get("Error", {}).get("Code", "")), str(found.get("Error", {}).get("Message", ""))
    # For answers without a body botocore gives the status as the code.
    return Answer(
        int(found.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
        "" if code.isdigit() else code[:80],
        message[:300],
    )
