"""ZeRO directories are put together again, values and moments, without DeepSpeed. They are made here as DeepSpeed lays them out: flat, cut, padded."""

import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.interop import deepspeed, imported
from holdfast.interop.errors import Refused
from holdfast.state import Registry
from tests.cli.foreign import same
from tests.cli.test_import import brought, taken_out

SHAPES = [{"a.weight": (7, 5), "b.weight": (3, 7)}, {"a.bias": (7,), "b.bias": (3,), "scale": ()}]
KEYS = ("fp32", "exp_avg", "exp_avg_sq")


def values() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    return {key: {n: torch.rand(s) for g in SHAPES for n, s in g.items()} for key in KEYS}


def cut_groups(tensors: dict[str, torch.Tensor], world: int) -> list[list[torch.Tensor]]:
    """Stages 1 and 2: each group flat, padded to 2 * world, in equal pieces. [rank][group]"""
    ranks: list[list[torch.Tensor]] = [[] for _ in range(world)]
    for shapes in SHAPES:
        flat = torch.cat([tensors[n].flatten() for n in shapes])
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % (2 * world)), value=-1)
        for rank, piece in enumerate(flat.chunk(world)):
            ranks[rank].append(piece.clone())
    return ranks


def cut_each(tensors: dict[str, torch.Tensor], world: int) -> list[list[torch.Tensor]]:
    """Stage 3: each tensor padded and cut by itself."""
    ranks: list[list[torch.Tensor]] = [[] for _ in range(world)]
    for shapes in SHAPES:
        pieces = []
        for name in shapes:
            flat = tensors[name].flatten()
            pieces.append(torch.nn.functional.pad(flat, (0, -flat.numel() % world), value=-1).chunk(world))
        for rank in range(world):
            ranks[rank].append(torch.cat([p[rank] for p in pieces]))
    return ranks


def directory(
    where: Path, stage: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, torch.Tensor]]:
    """With an enum of a package that is not there when it is read, as in DeepSpeed's files."""
    package = types.ModuleType("ds_like")
    exec(
        "import enum\nclass ZeroStageEnum(int, enum.Enum):\n    one = 1\n    two = 2\n    three = 3\n", package.__dict__
    )
    monkeypatch.setitem(sys.modules, "ds_like", package)
    all_, cut = values(), cut_each if stage == 3 else cut_groups
    pieces = {key: cut(all_[key], world) for key in KEYS}
    folder = where / "step3"
    folder.mkdir(parents=True)
    (where / "latest").write_text("step3")
    shapes = [{n: torch.Size(s) for n, s in g.items()} for g in SHAPES]
    model = {
        "module": {"running": torch.arange(3.0)}, "buffer_names": ["running"], "param_shapes": shapes, "shared_params": {"tied.weight": "a.weight"},
        "frozen_param_shapes": None, "frozen_param_fragments": None, "global_steps": 3, "ds_version": "0.19.8", "lr_scheduler": None,
    }  # fmt: skip
    for rank in range(world):
        base = {
            "state": {g: {"step": torch.tensor(3.0), "exp_avg": pieces["exp_avg"][rank][g], "exp_avg_sq": pieces["exp_avg_sq"][rank][g]} for g in (0, 1)},
            "param_groups": [{"lr": 0.1 * (g + 1), "betas": (0.9, 0.99), "params": [g]} for g in (0, 1)],
        }  # fmt: skip
        state: dict[str, Any] = {"zero_stage": package.ZeroStageEnum(stage), "partition_count": world}
        if stage == 3:
            state |= {"fp32_flat_groups": pieces["fp32"][rank], "optimizer_state_dict": base}
            torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        else:
            state |= {"single_partition_of_fp32_groups": pieces["fp32"][rank], "base_optimizer_state": base}
        torch.save({"optimizer_state_dict": state}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    if stage < 3:
        torch.save(model, folder / "mp_rank_00_model_states.pt")
    monkeypatch.delitem(sys.modules, "ds_like")
    return all_


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_value_and_moment_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, world: int
) -> None:
    all_ = directory(tmp_path / "ds", stage, world, monkeypatch)
    found = deepspeed.read(tmp_path / "ds", "model", trusted=True)
    expected = all_["fp32"] | {"running": torch.arange(3.0), "tied.weight": all_["fp32"]["a.weight"]}
    assert same(found.modules["model"], expected)
    assert (found.boundary, found.dropped) == (3, [])
    optimizer = found.optimizers["optimizer"]
    assert [g["params"] for g in optimizer["param_groups"]] == [[0, 1], [2, 3, 4]]
    assert [g["lr"] for g in optimizer["param_groups"]] == [0.1, 0.2]
    assert found.named == {"optimizer": [("model", n) for g in SHAPES for n in g]}
    for number, name in enumerate(n for g in SHAPES for n in g):
        state = {k: all_[k][name] for k in ("exp_avg", "exp_avg_sq")} | {"step": torch.tensor(3.0)}
        assert same(dict(sorted(optimizer["state"][number].items())), dict(sorted(state.items())))


def test_a_group_of_one_value_on_each_rank_is_no_scalar_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SHAPES", [{"scale": ()}, {"a.weight": (7, 5)}])
    all_ = directory(tmp_path / "ds", 3, 2, monkeypatch)
    state = deepspeed.read(tmp_path / "ds", "model", trusted=True).optimizers["optimizer"]["state"]
    assert same(state[0]["exp_avg"], all_["exp_avg"]["scale"])
    assert same(state[1]["exp_avg"], all_["exp_avg"]["a.weight"])


def test_it_is_imported_with_the_flag_and_not_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    all_ = directory(tmp_path / "ds", 2, 2, monkeypatch)
    with pytest.raises(Refused, match="--i-trust-this-file"):
        deepspeed.read(tmp_path / "ds", "model", trusted=False)
    said = brought(bucket, "--from", tmp_path / "ds", "--i-trust-this-file")
    assert (said["format"], said["boundary"], said["parts"]) == ("deepspeed", 3, ["model", "optimizer"])
    loaded = taken_out(bucket, said["jobUid"], tmp_path / "out.pt")
    assert same({n: loaded["model"][n] for n in all_["fp32"]}, all_["fp32"])


def test_an_incomplete_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory(tmp_path / "ds", 2, 3, monkeypatch)
    folder = tmp_path / "ds" / "step3"
    (folder / "zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(Refused, match="cut into 3 pieces, and 2"):
        deepspeed.read(tmp_path / "ds", "model", trusted=True)
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(Refused, match="the file of rank 0 is missing"):
        deepspeed.read(tmp_path / "ds", "model", trusted=True)
    (tmp_path / "ds" / "latest").write_text("../elsewhere")
    with pytest.raises(Refused, match="latest names"):
        deepspeed.read(tmp_path / "ds", "model", trusted=True)


def test_names_that_need_more_values_than_there_are_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory(tmp_path / "ds", 2, 2, monkeypatch)
    file = tmp_path / "ds" / "step3" / "mp_rank_00_model_states.pt"
    model = torch.load(file, weights_only=True)
    model["param_shapes"][0]["a.weight"] = torch.Size([9, 9])
    torch.save(model, file)
    with pytest.raises(Refused, match=rf"names that need {81 + math.prod((3, 7))}"):
        deepspeed.read(tmp_path / "ds", "model", trusted=True)


def test_moments_go_to_the_parameters_that_they_are_of_in_whatever_order_the_script_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, not numbers: two parameters of one shape would change their moments without a word."""
    all_ = directory(tmp_path / "ds", 2, 2, monkeypatch)
    found = deepspeed.read(tmp_path / "ds", "theirs", trusted=True)
    found.rename({"theirs": "net", "optimizer": "adam"})
    body = imported.document_of(found, [], seed=0).document["parts"]["adam"]
    assert body["names"] == [f"net.{n}" for g in SHAPES for n in g]
    leaves = imported.document_of(found, [], seed=0).leaves
    net = torch.nn.Module()
    for name in (n for g in SHAPES for n in g):
        holder = net
        *path, last = name.split(".")
        for part in path:
            if part not in dict(holder.named_children()):
                holder.add_module(part, torch.nn.Module())
            holder = holder.get_submodule(part)
        holder.register_parameter(last, torch.nn.Parameter(torch.zeros(all_["fp32"][name].shape)))
    named = dict(net.named_parameters())
    groups = [{"params": [named[n] for n in reversed([*g])]} for g in SHAPES]
    adam = torch.optim.Adam(groups, lr=1.0)
    part = Registry({"net": net, "adam": adam}).optimizers["adam"]
    assert list(part.compare(body, leaves.tensors)) == []
    part.load(body, leaves.tensors)
    for name, parameter in named.items():
        assert torch.equal(adam.state[parameter]["exp_avg"], all_["exp_avg"][name]), name
