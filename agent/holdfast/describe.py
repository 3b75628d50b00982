"""Facts about a run that every checkpoint carries: code, data, libraries, machine, hyper-parameters. Found out once, at start.

Never fails and never takes long: what cannot be found out in time reads "missing: " and why, so that nobody takes silence for an answer.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from holdfast_api import names

MISSING = "missing: "
NVIDIA = Path("/proc/driver/nvidia")
GIT_SECONDS = 2.0
MOST_CONFIG_BYTES = 64 << 10
"""It travels with every save."""
EDGE_BYTES = 64 << 10
"""Of each data file the first and the last so many are hashed, with its name and size: data sets are too large to be read at every start."""
PACKAGES = (
    "torch", "numpy", "torchvision", "torchaudio", "torchdata", "triton", "transformers", "tokenizers", "datasets", "accelerate", "peft", "lightning",
    "pytorch_lightning", "deepspeed", "streaming", "safetensors", "sklearn", "timm", "xformers", "flash_attn", "bitsandbytes", "apex", "jax",
)  # fmt: skip
"""Those that decide what a run computes, by the names they are imported by."""
_DISTRIBUTIONS = {"streaming": "mosaicml-streaming", "sklearn": "scikit-learn", "flash_attn": "flash-attn"}


@dataclass(frozen=True, slots=True)
class Dataset:
    """The data as far as it was described. `files` is 0 where only a fingerprint was given."""

    fingerprint: str
    files: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.files} files, {self.bytes} bytes)" if self.files else self.fingerprint


def facts(dataset: Dataset | None, run_id: str) -> dict[str, str]:
    """Everything but hyper-parameters. Starts `git`, for at most GIT_SECONDS each time."""
    return {
        "run_id": run_id or _run_id(),
        **_git(),
        "dataset": str(dataset or MISSING + "describe(dataset=...) or describe(data_files=[...]) was not called"),
        "packages": "; ".join(_packages()),
        "gpu": _gpu(),
        "driver": _driver(),
        "world": _world(),
    }


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Hyper-parameters by dotted name, each value as JSON; what has no JSON form by its `repr`. Raises ValueError for too many."""
    found: dict[str, str] = {}
    _flatten("", config, found, 0)
    size = sum(len(k) + len(v) for k, v in found.items())
    if size > MOST_CONFIG_BYTES:
        raise ValueError(
            f"config has {size} characters; {MOST_CONFIG_BYTES} are kept with every checkpoint. Leave out what is no hyper-parameter"
        )
    return found


def fingerprint(paths: Iterable[str | os.PathLike[str]]) -> Dataset:
    """Of files, and of all files below directories: names, sizes, first and last bytes. The same wherever they lie and in whatever order they are
    named. Raises ValueError when there is none, OSError."""
    files: dict[str, Path] = {}
    for given in map(Path, paths):
        below = sorted(p for p in given.rglob("*") if p.is_file()) if given.is_dir() else [given]
        for path in below:
            name = str(path.relative_to(given)) if given.is_dir() else path.name
            if name in files and files[name] != path:
                name = str(path)
            files[name] = path
    if not files:
        raise ValueError("data_files names no file: name at least one, or a directory that has some")
    digest, total = hashlib.blake2b(digest_size=16), 0
    for name in sorted(files):
        size = files[name].stat().st_size
        total += size
        digest.update(f"{len(name)} {name} {size} ".encode())
        with files[name].open("rb") as file:
            digest.update(file.read(EDGE_BYTES))
            file.seek(max(0, size - EDGE_BYTES))
            digest.update(file.read(EDGE_BYTES))
    return Dataset(digest.hexdigest(), len(files), total)


def of_loaders(loaders: Iterable[Any]) -> Dataset | None:
    """The fingerprint that a Hugging Face data set keeps of itself, of the first loader that has one."""
    for loader in loaders:
        known = getattr(getattr(loader, "dataset", None), "_fingerprint", None)
        if isinstance(known, str) and known:
            return Dataset(known)
    return None


def _flatten(prefix: str, value: Any, found: dict[str, str], depth: int) -> None:
    if isinstance(value, Mapping) and depth < 32 and (value or not prefix):
        for key, item in value.items():
            _flatten(f"{prefix}.{key}" if prefix else str(key), item, found, depth + 1)
        return
    try:
        found[prefix] = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        odd = isinstance(value, float) and not math.isfinite(value)
        found[prefix] = json.dumps(str(value) if odd else repr(value)[:1000], ensure_ascii=False)


def _run_id() -> str:
    for name in (names.ENV_RUN_ID, "WANDB_RUN_ID", "MLFLOW_RUN_ID"):
        if value := os.environ.get(name):
            return value
    return MISSING + f"describe(run_id=...) was not called, and {names.ENV_RUN_ID} is not set"


def _git() -> dict[str, str]:
    told = os.environ.get(names.ENV_GIT_COMMIT, "")
    if told:
        return {"git_commit": told.removesuffix("-dirty"), "git_dirty": str(told.endswith("-dirty")).lower()}
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = Path(main).resolve().parent if main else Path.cwd()
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if commit.startswith(MISSING):
        return {"git_commit": commit, "git_dirty": commit}
    status = _ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": commit,
        "git_dirty": status if status.startswith(MISSING) else str(bool(status)).lower(),
    }


def _ask_git(folder: Path, *arguments: str) -> str:
    hint = f"; set {names.ENV_GIT_COMMIT}"
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=GIT_SECONDS, check=False, stdin=subprocess.DEVNULL,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, ValueError) as e:
        return f"{MISSING}git cannot be started ({type(e).__name__}){hint}"
    except subprocess.TimeoutExpired:
        return f"{MISSING}git took longer than {GIT_SECONDS:.0f} s{hint}"
    if done.returncode:
        return f"{MISSING}{(done.stderr.strip().splitlines() or ['git failed'])[0][:200]}{hint}"
    return done.stdout.strip()


def _packages() -> list[str]:
    found = []
    for name in PACKAGES:
        module = sys.modules.get(name)
        if module is None:
            continue
        try:
            version = metadata.version(_DISTRIBUTIONS.get(name, name))
        except metadata.PackageNotFoundError:
            version = str(getattr(module, "__version__", "unknown"))
        found.append(f"{name}=={version}")
    return found


def _gpu() -> str:
    """Models of the machine's GPUs, in the kernel's own words; asking CUDA could start it."""
    found = Counter(
        line.partition(":")[2].strip()
        for path in sorted((NVIDIA / "gpus").glob("*/information"))
        for line in _lines_of(path)
        if line.startswith("Model:")
    )
    return (
        ", ".join(f"{n} x {model}" for model, n in sorted(found.items())) or MISSING + "no NVIDIA GPU on this machine"
    )


def _driver() -> str:
    lines = _lines_of(NVIDIA / "version")
    return lines[0].strip() if lines else MISSING + "no NVIDIA driver on this machine"


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _world() -> str:
    ranks, local = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", "1")
    words = f"{ranks} ranks, {local} on each worker"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        words += f", {torch.distributed.get_backend()}"
    return words


class History:
    """The tail of the metrics, for people: at most a point a second, the last KEPT, fewer where each has many numbers. Main thread."""

    KEPT = 32
    MOST_NUMBERS = 2048
    """It travels with every save, in messages of bounded length (codec.MAX_MESSAGE_BYTES): a norm for each of a thousand tensors would not."""
    SECONDS = 1.0

    def __init__(self) -> None:
        self.points: tuple[tuple[int, dict[str, float]], ...] = ()
        self._noted_at = -math.inf

    def note(self, boundary: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if not metrics or now - self._noted_at < self.SECONDS:
            return
        self._noted_at = now
        kept = min(self.KEPT, max(1, self.MOST_NUMBERS // len(metrics)))
        self.points = (*self.points, (boundary, metrics.copy()))[-kept:]
