"""What the peers' processes have in common: their order, and the upload of what they have written, by boto3 as it is fastest here."""

import json
import sys
from pathlib import Path
from typing import Any


def order() -> dict[str, Any]:
    """folder, mebibytes, step_seconds, endpoint, bucket, prefix."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found


def say(word: str) -> None:
    print(word, flush=True)


class Uploader:
    """Made before the notice, as a process that expects one would."""

    def __init__(self, order: dict[str, Any]) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        style = {"addressing_style": "path", "payload_signing_enabled": False}
        config = Config(max_pool_connections=32, s3=style)
        self._bucket, self._prefix = order["bucket"], order["prefix"]
        self._client = boto3.client("s3", endpoint_url=order["endpoint"], region_name="us-east-1", config=config)
        self._transfer = TransferConfig(
            multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=8, preferred_transfer_client="classic"
        )  # fmt: skip

    def send(self, paths: list[Path]) -> None:
        """Acknowledged when it returns, a last small object included."""
        for path in paths:
            self._client.upload_file(str(path), self._bucket, f"{self._prefix}/{path.name}", Config=self._transfer)
        self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/commit", Body=b"{}")
