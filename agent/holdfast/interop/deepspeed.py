"""Reading a DeepSpeed ZeRO directory (stages 1 to 3) without DeepSpeed.

ZeRO cuts the 32-bit parameters, laid end to end, into one piece a rank. Stages 1 and 2 lay out each parameter group as a whole and cut it into as many equal
pieces; stage 3 cuts every parameter by itself, and a rank's flat tensor is the sequence of its pieces. Both may be padded behind the last value. Moments of
Adam lie in the same way, and are mapped where their lengths fit.

    <tag>/mp_rank_00_model_states.pt                        stages 1 and 2: names, shapes, buffers
    <tag>/zero_pp_rank_<rank>_mp_rank_00_model_states.pt    stage 3, one a rank
    <tag>/[bf16_]zero_pp_rank_<rank>_mp_rank_00_optim_states.pt
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from holdfast.interop import pickles
from holdfast.interop.errors import Refused
from holdfast.interop.found import Found

_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt\Z")
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt\Z")
Shapes = dict[str, tuple[int, ...]]


def is_one(path: Path) -> bool:
    return (path / "latest").is_file() or any(_MODEL.match(f.name) for f in path.iterdir())


def read(path: Path, name: str, *, trusted: bool) -> Found:
    """`path` is what `save_checkpoint` was given (then `latest` says which tag) or the tag's own directory. Raises Refused, OSError."""
    folder = _tag(path)
    optimizer_files, model_files = _ranks(folder, _OPTIMIZER), _ranks(folder, _MODEL)
    if not model_files:
        raise Refused(f"{folder.name} holds no *_model_states.pt")
    if not optimizer_files:
        raise Refused(
            f"{folder.name} holds no *_optim_states.pt: without ZeRO the weights are in {model_files[0].name}, key 'module'"
        )
    pieces = [_optimizer_of(pickles.read(f, trusted=trusted), f) for f in optimizer_files]
    models = [pickles.read(f, trusted=trusted) for f in model_files]
    stage = _stage(pieces)
    world = _count(pieces[0].get("partition_count"), len(pieces))
    if world != len(pieces):
        raise Refused(
            f"the state is cut into {world} pieces, and {len(pieces)} *_optim_states.pt are there: the copy is not complete"
        )
    if stage == 3 and len(models) != world:
        raise Refused(f"stage 3 needs {world} *_model_states.pt, and {len(models)} are there: the copy is not complete")
    groups = _shapes(models[0])
    cut = _cut_each if stage == 3 else _cut_groups
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    weights = cut([_flat_groups(p, key) for p in pieces], groups, "the 32-bit parameters")
    state: dict[str, Any] = dict(weights)
    state |= _frozen(models, stage)
    module = models[0].get("module") or {}
    state |= {k: module[k] for k in models[0].get("buffer_names") or () if k in module}
    state |= {a: state[b] for a, b in dict(models[0].get("shared_params") or {}).items() if b in state}
    found = Found("deepspeed", modules={name: state}, boundary=_count(models[0].get("global_steps"), 0))
    optimizer = _moments(pieces, groups, cut, stage, found.dropped)
    if optimizer is not None:
        found.optimizers["optimizer"] = optimizer
        found.named["optimizer"] = [(name, key) for shapes in groups for key in shapes]
    scheduler = models[0].get("lr_scheduler")
    if isinstance(scheduler, dict):
        found.others["scheduler"] = pickles.plain(scheduler, "scheduler", found.dropped)
    return found


def _tag(path: Path) -> Path:
    if not (path / "latest").is_file():
        return path
    tag = (path / "latest").read_text().strip()
    folder = path / tag
    if not tag or "/" in tag or tag in (".", "..") or not folder.is_dir():
        raise Refused(f"latest names {tag!r}, which is no directory beside it")
    return folder


def _ranks(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """In order of ranks, none missing."""
    found: dict[int, Path] = {}
    for file in folder.iterdir():
        match = pattern.match(file.name)
        if match and int(match[2]) > 0:
            raise Refused(
                f"{file.name}: model parallel DeepSpeed checkpoints are not read; merge them with DeepSpeed's own tools first"
            )
        if match:
            found[int(match[1] or 0)] = file
    missing = sorted(set(range(len(found))) - found.keys())
    if missing:
        raise Refused(f"{folder.name}: the file of rank {missing[0]} is missing: the copy is not complete")
    return [found[n] for n in sorted(found)]


def _optimizer_of(whole: Any, file: Path) -> dict[str, Any]:
    state = whole.get("optimizer_state_dict") if isinstance(whole, dict) else None
    if not isinstance(state, dict) or "zero_stage" not in state:
        raise Refused(f"{file.name} is no state of a ZeRO optimizer")
    return state


def _stage(pieces: list[dict[str, Any]]) -> int:
    """`zero_stage` is an enum of DeepSpeed's, here perhaps a stand-in that remembers its number."""
    value = pieces[0]["zero_stage"]
    if isinstance(value, pickles.StandIn):
        value = value.arguments[0] if value.arguments else None
    if value not in (1, 2, 3):
        raise Refused(f"zero_stage is {value!r}; stages 1, 2 and 3 are read")
    return int(value)


def _count(value: Any, default: int) -> int:
    if isinstance(value, list) and value:  # one for each parameter group
        value = max(value)
    return value if isinstance(value, int) and value >= 0 else default


def _shapes(model: dict[str, Any]) -> list[Shapes]:
    groups = model.get("param_shapes")
    if isinstance(groups, dict):
        groups = [groups]
    if not isinstance(groups, list) or not all(isinstance(g, dict) for g in groups):
        raise Refused("*_model_states.pt holds no param_shapes: it is not of ZeRO, or of a DeepSpeed before 0.4")
    return [{str(k): tuple(v) for k, v in g.items()} for g in groups]


def _flat_groups(piece: dict[str, Any], key: str) -> list[torch.Tensor]:
    groups = piece.get(key)
    if isinstance(groups, torch.Tensor):
        groups = [groups]
    if not isinstance(groups, list) or not all(isinstance(g, torch.Tensor) for g in groups):
        raise Refused(
            f"a *_optim_states.pt holds no {key}: it is of another kind of DeepSpeed checkpoint (universal, or elastic)"
        )
    return [g.flatten() for g in groups]


def _cut_groups(ranks: Sequence[list[torch.Tensor]], groups: list[Shapes], what: str) -> dict[str, torch.Tensor]:
    """Stages 1 and 2."""
    found: dict[str, torch.Tensor] = {}
    for number, shapes in enumerate(groups):
        if any(len(r) != len(groups) for r in ranks):
            raise Refused(f"{what}: {len(ranks[0])} flat groups for {len(groups)} groups of names")
        whole, offset = torch.cat([r[number] for r in ranks]), 0
        wanted = sum(math.prod(s) for s in shapes.values())
        padding = whole.numel() - wanted
        if not 0 <= padding < 2 * len(ranks) + len(ranks) * max(1, len(shapes)):
            raise Refused(f"{what}, group {number}: {whole.numel()} values for names that need {wanted}")
        for name, shape in shapes.items():
            found[name] = whole[offset : offset + math.prod(shape)].view(shape)
            offset += math.prod(shape)
    return found


def _cut_each(ranks: Sequence[list[torch.Tensor]], groups: list[Shapes], what: str) -> dict[str, torch.Tensor]:
    """Stage 3."""
    flat = [torch.cat(r) if r else torch.empty(0) for r in ranks]
    world, offset = len(ranks), 0
    found: dict[str, torch.Tensor] = {}
    wanted = sum(-(-math.prod(s) // world) for g in groups for s in g.values())
    if any(f.numel() < wanted for f in flat):
        raise Refused(f"{what}: a rank has {min(f.numel() for f in flat)} values for names that need {wanted}")
    for shapes in groups:
        for name, shape in shapes.items():
            piece = -(-math.prod(shape) // world)
            found[name] = torch.cat([f[offset : offset + piece] for f in flat])[: math.prod(shape)].view(shape)
            offset += piece
    return found


def _frozen(models: list[dict[str, Any]], stage: int) -> dict[str, torch.Tensor]:
    shapes = models[0].get("frozen_param_shapes") or {}
    found = {}
    for name, shape in dict(shapes).items():
        parts = [m["frozen_param_fragments"][name] for m in (models if stage == 3 else models[:1])]
        found[name] = torch.cat([p.flatten() for p in parts])[: math.prod(shape)].view(tuple(shape))
    return found


def _moments(
    pieces: list[dict[str, Any]], groups: list[Shapes], cut: Any, stage: int, dropped: list[str]
) -> dict[str, Any] | None:
    """The base optimizer's state by parameter, numbered as torch numbers them: group after group. None, and a word in `dropped`, where it lies otherwise."""
    bases = [p.get("base_optimizer_state") if stage < 3 else p.get("optimizer_state_dict") for p in pieces]
    try:
        states = [list(b["state"].values()) for b in bases]  # type: ignore[index]
        settings = bases[0]["param_groups"]  # type: ignore[index]
        keys = list(states[0][0])
        mapped: dict[int, dict[str, Any]] = {i: {} for i in range(sum(map(len, groups)))}
        for key in keys:
            values = [[s[key] for s in rank] for rank in states]
            every = [v for rank in values for v in rank]
            if all(isinstance(v, torch.Tensor) for v in every) and any(v.numel() > 1 for v in every):
                found = cut([[v.flatten() for v in rank] for rank in values], groups, key)
                for i, tensor in enumerate(found.values()):
                    mapped[i][key] = tensor
            else:  # the number of steps, the same for all
                for i in mapped:
                    mapped[i][key] = values[0][0]
    except (KeyError, TypeError, IndexError, AttributeError, Refused) as e:
        dropped.append(
            f"the optimizer's state, which does not lie as a ZeRO optimizer's does ({type(e).__name__}: {e})"
        )
        return None
    number, param_groups = 0, []
    for shapes, group in zip(groups, settings, strict=False):
        kept = pickles.plain({k: v for k, v in group.items() if k != "params"}, "optimizer.param_groups", dropped)
        param_groups.append(kept | {"params": list(range(number, number + len(shapes)))})
        number += len(shapes)
    if len(param_groups) != len(groups):
        dropped.append(
            "the optimizer's state: it has another number of parameter groups than there are groups of names"
        )
        return None
    return {"state": mapped, "param_groups": param_groups}
