"""What the peers train: example 01's model, data and loop with torch.distributed.checkpoint in place of Holdfast, and "restart from the newest".

    torchrun … train_dcp.py PREFIX --every 10 …

Checkpoints: DCP writes into memory (`/dev/shm`, two threads), each rank sends its own files with obstore, eight at a time, and rank 0 writes `latest` when all
are there. A start reads `latest`, fetches its files once a node, and DCP loads them. Nothing is done about SIGTERM: that is what "plain" means.
Prints a line of JSON at each moment that the benchmark asks for: {"mark": "start" | "imported" | "joined" | "loaded" | "step", "at": Unix time, …}.
"""

import json
import os
import time


def mark(name: str, **more: object) -> None:
    line = json.dumps({"mark": name, "at": time.time(), "rank": int(os.environ["RANK"]), **more}) + "\n"
    os.write(1, line.encode())  # in one piece: ranks share the launcher's output


mark("start")

import shutil  # noqa: E402
import sys  # noqa: E402
import types  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402

import obstore  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from obstore.store import S3Store  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from torch.utils.data import DataLoader, DistributedSampler  # noqa: E402

sys.modules["holdfast"] = types.ModuleType("holdfast")  # the example imports it; here it is neither used nor paid for
from train import BytesGPT, Windows  # noqa: E402

HERE = Path("/dev/shm/dcp")
ENDPOINT = os.environ["AWS_ENDPOINT_URL"]


class Checkpoints:
    """Below one prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._prefix = prefix
        options = {"allow_http": True} if ENDPOINT.startswith("http:") else {}
        self._store = S3Store(bucket, endpoint=ENDPOINT, virtual_hosted_style_request=False, client_options=options)
        self._pool = ThreadPoolExecutor(8)

    def save(self, step: int, state: dict[str, object]) -> None:
        folder = HERE / str(step)
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, thread_count=2, single_file_per_rank=True))
        rank = dist.get_rank()
        mine = [p for p in folder.iterdir() if p.name.startswith(f"__{rank}_") or (rank == 0 and p.name == ".metadata")]
        list(self._pool.map(lambda p: obstore.put(self._store, f"{self._prefix}/{step}/{p.name.lstrip('.')}", p), mine))
        dist.barrier()
        if rank == 0:
            obstore.put(self._store, f"{self._prefix}/latest", str(step).encode())
        if int(os.environ["LOCAL_RANK"]) == 0:
            shutil.rmtree(folder, ignore_errors=True)

    def fetch(self) -> tuple[int, Path] | None:
        """The newest, in memory; None where there is none yet. Once a node: the others wait."""
        try:
            step = int(bytes(obstore.get(self._store, f"{self._prefix}/latest").bytes()))
        except FileNotFoundError:
            return None
        folder = HERE / f"from-{step}"
        if int(os.environ["LOCAL_RANK"]) == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            keys = [o["path"] for part in obstore.list(self._store, f"{self._prefix}/{step}/") for o in part]

            def one(key: str) -> None:
                name = key.rpartition("/")[2]
                (folder / (".metadata" if name == "metadata" else name)).write_bytes(
                    bytes(obstore.get(self._store, key).bytes())
                )

            list(self._pool.map(one, keys))
        dist.barrier()
        return step, folder


def main() -> None:
    bucket, prefix = sys.argv[1].removeprefix("s3://").split("/", 1)
    every, batch, context, accumulate = (int(os.environ[n]) for n in ("EVERY", "BATCH", "CONTEXT", "ACCUMULATE"))
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    mark("imported")
    dist.init_process_group("gloo")
    mark("joined")
    torch.manual_seed(1)
    bare = BytesGPT(context, 192, 6, 6, 0.1)
    model = DistributedDataParallel(bare)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = Windows(context, 2.0)
    sampler = DistributedSampler(data, seed=1)
    loader = DataLoader(data, batch, sampler=sampler, num_workers=1, drop_last=True)
    checkpoints, step = Checkpoints(bucket, prefix), 0
    if (found := checkpoints.fetch()) is not None:
        step, folder = found
        weights, moments = get_state_dict(bare, optimizer)
        dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder)
        set_state_dict(bare, optimizer, model_state_dict=weights, optim_state_dict=moments)
    mark("loaded", step=step)
    epoch, number = 0, 0
    while True:
        sampler.set_epoch(epoch)
        epoch += 1
        for windows in loader:
            number += 1
            last = number % accumulate == 0
            model.require_backward_grad_sync = last
            loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()) / accumulate
            loss.backward()
            if not last:
                continue
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            mark("step", step=step)
            if step % every == 0:
                weights, moments = get_state_dict(bare, optimizer)
                checkpoints.save(step, {"model": weights, "optimizer": moments})


if __name__ == "__main__":
    main()
