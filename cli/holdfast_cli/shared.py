"""What verbs share: options, opening a job's store, and how an error ends the program. No traceback ever reaches a person."""

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NoReturn, get_type_hints

import typer

from holdfast_api.config import StorageConfig
from holdfast_api.errors import BadName
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CommitRecord
from holdfast_store import discover
from holdfast_store.errors import Absent, Corrupt, StoreError
from holdfast_store.job import JobStore
from holdfast_store.opening import open_bucket
from holdfast_store.overview import Standing, overview

EXIT_DAMAGED = 1
EXIT_USAGE = 2
EXIT_STORE = 3
EXIT_INTERRUPTED = 130


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


Uri = Annotated[
    str,
    typer.Argument(
        metavar="URI",
        help="Where the checkpoints are: spec.checkpoint.storage.uri, as s3://bucket/prefix, gs://…, az://… or file:///dir.",
    ),
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace of the job.")]
Job = Annotated[str, typer.Option("--job", "-j", help="Name of the TrainingJob.")]
Uid = Annotated[str, typer.Option("--uid", help="Uid of the TrainingJob, where several of this name have been here.")]
Endpoint = Annotated[
    str, typer.Option("--endpoint", help="S3 endpoint; default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS.")
]
Region = Annotated[str, typer.Option("--region", help="S3 region; default: AWS_REGION, AWS_DEFAULT_REGION, us-east-1.")]
Retry = Annotated[
    float, typer.Option("--retry-seconds", min=0, help="How long to try again when the store does not answer.")
]
Format = Annotated[Output, typer.Option("--output", "-o", help="How to print.")]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job's checkpoints are: the arguments and options that every verb has, in the order of its help."""

    uri: Uri
    namespace: Namespace
    job: Job
    uid: Uid = ""
    endpoint: Endpoint = ""
    region: Region = ""
    retry_seconds: Retry = 10.0

    def stores(self) -> list[JobStore]:
        """The job's stores, one per uid that has been here, in a bucket that has been seen to exist, so that "no job" means no job (B7). Ends the program
        if there is none."""
        storage = StorageConfig(self.uri, self.endpoint, self.region)
        bucket = open_bucket(storage, os.environ, retry_seconds=self.retry_seconds)
        bucket.check()
        uids = [self.uid] if self.uid else discover.uids(bucket, self.namespace, self.job)
        if not uids:
            fail(
                f"{bucket.uri} holds nothing of {self.namespace}/{self.job}: check URI, --namespace and --job",
                EXIT_DAMAGED,
            )
        return [JobStore(bucket, self.namespace, self.job, each) for each in uids]

    def store(self) -> JobStore:
        """The only one."""
        stores = self.stores()
        if len(stores) > 1:
            fail(
                f"several jobs of this name have been here; add --uid, one of: {', '.join(s.job_uid for s in stores)}",
                EXIT_USAGE,
            )
        return stores[0]


def at_a_place(*, retry_seconds: float = 10.0) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a verb, whose first parameter is a Place, the options of one on the command line."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(Place, include_extras=True)
        _, *own = inspect.signature(verb).parameters.values()
        defaults = {f.name: f.default for f in inspect.signature(Place).parameters.values()}
        defaults["retry_seconds"] = retry_seconds
        named = inspect.Parameter.KEYWORD_ONLY
        of_place = [inspect.Parameter(n, named, default=defaults[n], annotation=hint) for n, hint in hints.items()]

        @functools.wraps(verb)
        def run(**options: Any) -> None:
            verb(Place(**{name: options.pop(name) for name in hints}), **options)

        combined = [*of_place, *(p.replace(kind=named) for p in own)]
        run.__signature__ = inspect.Signature(combined)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {p.name: p.annotation for p in combined}
        return run

    return decorate


def parse_ref(text: str, option: str = "--checkpoint") -> CheckpointRef:
    """What an option takes that names a checkpoint."""
    try:
        return CheckpointRef.parse(text)
    except ValueError as e:
        fail(f"{option}: {e}", EXIT_USAGE)


def usable(store: JobStore) -> list[CheckpointRef]:
    """Newest first."""
    return [view.ref for view in overview(store) if view.standing is Standing.USABLE]


def record_of(store: JobStore, ref: CheckpointRef) -> CommitRecord:
    try:
        return store.read_commit(ref)[0]
    except Absent:
        fail(
            f"checkpoint {ref} does not exist: it is expired, or was never committed; see `holdfast checkpoints --all`",
            EXIT_DAMAGED,
        )


def newest_of(store: JobStore) -> CheckpointRef:
    found = usable(store)
    if not found:
        fail(
            f"{store.namespace}/{store.job} has no usable checkpoint; `holdfast checkpoints --all` shows what there is",
            EXIT_DAMAGED,
        )
    return found[0]


@contextlib.contextmanager
def errors_end_the_program() -> Iterator[None]:
    """Errors of the store and of names become one line and an exit code."""
    try:
        yield
    except BadName as e:
        fail(str(e), EXIT_USAGE)
    except (Corrupt, Absent) as e:
        fail(str(e), EXIT_DAMAGED)
    except StoreError as e:
        fail(str(e), EXIT_STORE)


def fail(message: str, code: int) -> NoReturn:
    typer.echo(f"holdfast: {message}", err=True)
    raise typer.Exit(code)


def size(count: int) -> str:
    """Bytes for people."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
