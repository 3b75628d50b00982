"""What verbs share: options, opening a job's store, and how an error ends the program. No traceback ever reaches a person."""

import contextlib
import os
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from holdfast_api.config import StorageConfig
from holdfast_api.errors import BadName
from holdfast_store import discover
from holdfast_store.bucket import Bucket
from holdfast_store.errors import Absent, Corrupt, StoreError
from holdfast_store.job import JobStore
from holdfast_store.opening import open_bucket

EXIT_DAMAGED = 1
EXIT_USAGE = 2
EXIT_STORE = 3


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


def open_checked(uri: str, endpoint: str, region: str, retry_seconds: float) -> Bucket:
    """A bucket that has been seen to exist, so that "no job" means no job (B7)."""
    bucket = open_bucket(StorageConfig(uri, endpoint, region), os.environ, retry_seconds=retry_seconds)
    bucket.check()
    return bucket


def stores_of(bucket: Bucket, namespace: str, job: str, uid: str) -> list[JobStore]:
    """The job's stores, one per uid that has been here. Ends the program if there is none."""
    uids = [uid] if uid else discover.uids(bucket, namespace, job)
    if not uids:
        fail(f"{bucket.uri} holds nothing of {namespace}/{job}: check URI, --namespace and --job", EXIT_DAMAGED)
    return [JobStore(bucket, namespace, job, each) for each in uids]


def the_only(stores: list[JobStore]) -> JobStore:
    if len(stores) > 1:
        fail(
            f"several jobs of this name have been here; add --uid, one of: {', '.join(s.job_uid for s in stores)}",
            EXIT_USAGE,
        )
    return stores[0]


def size(count: int) -> str:
    """Bytes for people."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
