"""From the states of the N ranks that made a checkpoint to the state of one of M: which boxes of which tensors it needs, and the document that it then
loads as if its own world had made it. Pure but for reading shapes and places of the live objects; nothing is touched. docs/library.md has the rules.

    parameters, sharded state      by name and box: what this rank holds now, cut out of whatever holds it
    replicated state               of the first rank that holds it, for all: so they are equal afterwards
    ZeRO-1                         by the names of the parameters that are in this rank's share now
    buffers, and what else is a rank's own (J4)    rank r takes rank r mod N's
    random generators              equal on all N ranks: as they are; else new ones, from rank 0's and this rank's number (derive.py)
    positions in loaders           redistribute.py, once the loader is known
    gradients of an open window    refused: they are sums over the batches of N ranks
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from holdfast import derive, sharding, tree
from holdfast.allowed import EPOCH_START, OPEN_WINDOW, Allowed
from holdfast.errors import CheckpointDamaged, RestoreError
from holdfast.loader import LoaderPart
from holdfast.module_part import ModulePart
from holdfast.optimizer_part import OptimizerPart, ZeroPart
from holdfast.part import Part
from holdfast.redistribute import redistributed
from holdfast.state import Registry
from holdfast.stateful_part import GeneratorPart, StatefulPart
from holdfast_api.manifest import TensorEntry
from holdfast_api.ranks import Region

log = logging.getLogger("holdfast")
_TAGS = ("$tensor", "$part", "$ndarray")


@dataclass(frozen=True, slots=True)
class Source:
    """What one rank of the checkpoint says of itself."""

    document: dict[str, Any]
    entries: Mapping[str, TensorEntry]
    """Of its manifest, by name."""


@dataclass(frozen=True, slots=True)
class Reshaped:
    """What this rank loads once it has `regions`: as tensors by the name of each."""

    document: dict[str, Any]
    regions: tuple[Region, ...]


def reshape(sources: Sequence[Source], registry: Registry, rank: int, world: int) -> Reshaped:
    """For rank `rank` of `world`. Raises RestoreError that lists everything that does not fit, CheckpointDamaged."""
    wants = _Wants(sources, rank)
    documents = [s.document for s in sources]
    home = documents[wants.home]
    parts, anew = {}, set(home.get("anew", ()))
    for name in dict.fromkeys(n for d in documents for n in d["parts"]):
        bodies = [d["parts"].get(name) for d in documents]
        part = registry.parts.get(name)
        if any(b is None for b in bodies):
            if name not in registry.allowed.missing | registry.allowed.extra:
                wants.problems.append(
                    f"{name} is not in the state of every rank of the checkpoint: let it stay as the script made it, "
                    f'ckpt.restore(allow=("missing:{name}",)), or go on with as many ranks'
                )
        elif isinstance(part, LoaderPart) and not _loads(part, bodies, documents, wants, registry.allowed):
            anew.add(name)
        else:
            parts[name] = _body(part, bodies, wants, rank)
    gradients = _gradients(documents, wants, registry.allowed)
    positions = _positions(documents, registry, rank, world, wants)
    if wants.problems:
        raise RestoreError(
            f"the checkpoint of {len(sources)} ranks cannot be loaded by {world}:\n  " + "\n  ".join(wants.problems)
        )
    document = home | {
        "parts": parts,
        "gradients": gradients,
        "rng": _generators(documents, rank),
        "positions": positions,
    }
    return Reshaped(document | ({"anew": sorted(anew)} if anew else {}), tuple(wants.regions.values()))


class _Wants:
    """Collects what is needed, and what does not fit."""

    def __init__(self, sources: Sequence[Source], rank: int) -> None:
        self.sources, self.home, self.says = sources, rank % len(sources), rank == 0
        """`home`: the rank of the checkpoint of which this one takes what is a rank's own. `says`: what concerns all ranks is said by one."""
        self.regions: dict[str, Region] = {}
        self.problems: list[str] = []

    def entry(self, rank: int, name: str) -> TensorEntry:
        found = self.sources[rank].entries.get(name)
        if found is None:
            raise CheckpointDamaged(f"the state of rank {rank} names the tensor {name}, which is not in its image")
        return found

    def as_is(self, body: Any, rank: int | None = None) -> Any:
        """`body` with the tensors that it names, as `rank` (else home) has them."""
        for name in _names_in(body):
            self.whole(name, self.home if rank is None else rank)
        return body

    def whole(self, name: str, rank: int, called: str = "") -> None:
        """What the rank's image has under that name; of copies the first, so that all who take one get the same."""
        entry = self.entry(rank, name)
        self._add(
            called or name,
            name,
            (self._first(entry, rank),),
            entry,
            entry.shape,
            entry.global_shape,
            entry.global_offset,
        )

    def box(self, name: str, rank: int, box: sharding.Box, shape: tuple[int, ...], called: str = "") -> None:
        """A box of the tensor that `rank` has whole, or a part of."""
        entry = self.entry(rank, name)
        ranks = () if entry.global_shape else (self._first(entry, rank),)
        self._add(called or name, name, ranks, entry, shape, box.global_shape, box.offset)

    def fit(self, body: Any, live: Any, path: str) -> Any:
        """The body of a parameter or buffer, for what `live` holds of it here."""
        name = _name_in(body)
        if name is None or not isinstance(live, torch.Tensor):
            return self.as_is(body)
        entry = self.entry(self.home, name)
        whole = entry.global_shape or entry.shape
        if tuple(live.shape) != whole:
            self.problems.append(f"{path}: {tuple(live.shape)} here, {whole} in the checkpoint")
            return body
        return self._placed(body, name, self.home, live, whole, path)

    def fit_state(self, body: Any, parameter: Any, rank: int, path: str) -> Any:
        """Of optimizer state, which is placed as its parameter is where it has the parameter's shape."""
        name = _name_in(body)
        if name is None:
            return self.as_is(body, rank)
        entry = self.entry(rank, name)
        whole = entry.global_shape or entry.shape
        if parameter is None or (whole and tuple(parameter.shape) == whole):
            return self._placed(body, name, rank, parameter, whole, path)
        if "$part" not in body:
            return self.as_is(body, rank)
        if not sharding.is_sharded(parameter):
            return self._placed(body, name, rank, None, whole, path)
        box, shape, placed = sharding.box_for(whole, body["placed"], parameter, path)
        self.box(name, rank, box, shape)
        return _part(name, box, placed)

    def _placed(self, body: Any, name: str, rank: int, live: Any, whole: tuple[int, ...], path: str) -> Any:
        if live is not None and sharding.is_sharded(live):
            part = sharding.part_of(live, path)
            self.box(name, rank, part.box, tuple(part.local.shape))
            return _part(name, part.box, part.placements)
        if "$part" not in body:
            return self.as_is(body, rank)
        self.box(name, rank, sharding.Box(whole, (0,) * len(whole)), whole)
        return {"$tensor": name}

    def _first(self, entry: TensorEntry, rank: int) -> int:
        first = _first_of(entry.group)
        if first is None or not first < len(self.sources):
            return rank
        there = self.sources[first].entries.get(entry.name)
        same = there is not None and (there.shape, there.global_offset) == (entry.shape, entry.global_offset)
        return first if same else rank

    def _add(
        self, called: str, name: str, ranks: tuple[int, ...], entry: TensorEntry, shape: tuple[int, ...],
        global_shape: tuple[int, ...], global_offset: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.regions[called] = Region(called, name, ranks, entry.dtype, shape, global_shape, global_offset)


def _body(part: Part | None, bodies: list[Any], wants: _Wants, rank: int) -> Any:
    match part:
        case ModulePart():
            return _module(part, bodies, wants)
        case ZeroPart():
            return _zero(part, bodies, wants)
        case OptimizerPart():
            return _optimizer(part, bodies, wants)
        case GeneratorPart():
            return _generator(part, bodies, rank)
        case StatefulPart():
            return _stateful(part, bodies, wants)
    return wants.as_is(bodies[wants.home])  # `compare` says that it is not registered


def _module(part: ModulePart, bodies: list[Any], wants: _Wants) -> Any:
    home, live, loose = bodies[wants.home], part.module.state_dict(), part.loose_buffers()
    if "loose" not in home:
        return home
    alone = [
        k for k in home["parameters"] if (n := _name_in(home["state"][k])) and not _shared(wants.entry(wants.home, n))
    ]
    if alone and len(bodies) > 1 and wants.says:
        log.warning(
            "holdfast: nothing says that %s.%s (and %d more) are equal on all ranks, as below DistributedDataParallel: rank r takes what rank r mod %d had",
            part.name, alone[0], len(alone) - 1, len(bodies),
        )  # fmt: skip
    body = {k: wants.fit(v, live.get(k), f"{part.name}.{k}") for k, v in home["state"].items()}
    outside = {
        k: wants.fit(v, loose[k], "") if k in loose and _same_whole(v, loose[k], wants) else wants.as_is(v)
        for k, v in home["loose"].items()
    }
    metrics = {"metrics": wants.as_is(home["metrics"])} if "metrics" in home else {}
    return home | {"state": body, "loose": outside} | metrics


def _optimizer(part: OptimizerPart, bodies: list[Any], wants: _Wants) -> Any:
    home = bodies[wants.home]
    if "orphans" not in home:
        return home
    if any(b.get("names") != home.get("names") for b in bodies):
        wants.problems.append(f"{part.name}: the ranks of the checkpoint hold other parameters, or in another order")
        return home
    _must_agree(part.name, "settings", [b["state"]["param_groups"] for b in bodies], wants)
    parameters = dict(zip(part.order(home), part.parameters(), strict=False))
    found: dict[Any, tuple[int, Any]] = {}
    for rank in (wants.home, *range(len(bodies))):
        for index, values in _pairs(bodies[rank]["state"]["state"]):
            found.setdefault(index, (rank, values))
    state = [
        [
            i,
            _values(
                values, lambda k, v, i=i, r=rank: wants.fit_state(v, parameters.get(i), r, f"{part.name}.state.{i}.{k}")
            ),
        ]
        for i, (rank, values) in found.items()
    ]
    rest = {k: wants.as_is(v) for k, v in home["state"].items() if k != "state"}
    return home | {"state": rest | {"state": {"$dict": state}}, "orphans": wants.as_is(home["orphans"])}


def _zero(part: ZeroPart, bodies: list[Any], wants: _Wants) -> Any:
    home = bodies[wants.home]
    if any("share" not in b for b in bodies):
        wants.problems.append(
            f"{part.name}: this checkpoint was made by a release that did not name what is in each rank's share; load it by as many ranks as made it, and "
            "save once"
        )
        return home
    _must_agree(part.name, "settings", [b["settings"] for b in bodies], wants)
    where: dict[str, tuple[int, int]] = {}
    for rank, body in enumerate(bodies):
        for index, name in enumerate(body["share"]):
            where.setdefault(name, (rank, index))
    state = []
    for here, name in enumerate(part.share()):
        if name not in where:
            wants.problems.append(f"{part.name}: no rank of the checkpoint has {name} in its share")
            continue
        rank, there = where[name]
        values = dict(_pairs(bodies[rank]["state"]["state"])).get(there)
        if values is not None:
            state.append([here, _renamed(values, rank, f"{part.name}.state.{here}", wants)])
    live = part.inner.state_dict()["param_groups"]
    groups = [
        wants.as_is(saved) | {"params": group["params"]}
        for saved, group in zip(home["state"]["param_groups"], live, strict=False)
    ]
    return home | {
        "state": home["state"] | {"state": {"$dict": state}, "param_groups": groups},
        "orphans": wants.as_is(home["orphans"]),
        "ranks": part.optimizer.world_size,
        "share": part.share(),
        "settings": wants.as_is(home["settings"]),
    }


def _stateful(part: StatefulPart, bodies: list[Any], wants: _Wants) -> Any:
    if any(b != bodies[0] for b in bodies):
        if isinstance(part.target, torch.optim.lr_scheduler.LRScheduler | torch.amp.GradScaler):
            _must_agree(part.name, "state", bodies, wants)
        elif wants.says:
            log.warning(
                "holdfast: %s was not the same on all ranks of the checkpoint: rank r takes what rank r mod %d had",
                part.name, len(bodies),
            )  # fmt: skip
    return wants.as_is(bodies[wants.home])


def _generator(part: GeneratorPart, bodies: list[Any], rank: int) -> Any:
    if len(bodies) > 1 and all(b == bodies[0] for b in bodies):
        return bodies[0]
    state = derive.own(tree.decode(bodies[0], {}), part.target, f"{part.name}", rank)
    return tree.encode(state, part.name, {})


def _generators(documents: list[Any], rank: int) -> Any:
    saved = [d["rng"] for d in documents]
    if len(saved) > 1 and all(s == saved[0] for s in saved):
        return saved[0]
    return tree.encode(derive.generators(tree.decode(saved[0], {}), rank), "rng", {})


def _positions(documents: list[Any], registry: Registry, rank: int, world: int, wants: _Wants) -> Any:
    """Of a loader that is not registered, what all ranks said: `Position.load` makes one place of it, because only then the loader is known."""
    names = dict.fromkeys(n for d in documents for n in d["positions"])
    found = {}
    for name in names:
        states = [d["positions"][name] for d in documents if name in d["positions"]]
        restart = EPOCH_START in registry.allowed
        every = {"ranks": _flat(states, rank), "rank": rank, "world": world, "restart": restart}
        position = registry.positions.get(name)
        if position is None:
            found[name] = every
            continue
        try:
            plain = tree.decode(every["ranks"], {})
            one = redistributed(plain, position.loader, rank, world, restart=restart)
            found[name] = tree.encode(one, f"positions.{name}", {})
        except RestoreError as e:
            wants.problems.append(f"{name}: {e}")
    return found


def _flat(states: list[Any], rank: int) -> list[Any]:
    """Of a loader that nobody has read since the last change of the number of ranks, what was said before that."""
    first = states[rank % len(states)]
    found: list[Any] = first.get("ranks", states)
    return found


def _loads(part: LoaderPart, bodies: list[Any], documents: list[Any], wants: _Wants, allowed: Allowed) -> bool:
    """A loader that keeps its own place takes it back only where that says the same on all ranks and is not read through `batches`; between two epochs it
    stays as the script made it. In the middle of one nobody can say which samples are left."""
    states = [d["positions"].get(part.name, {}) for d in documents]
    read = any(s.get("samples") or "ranks" in s for s in states)
    if not read and all(b == bodies[0] for b in bodies):
        return True
    if (
        any((s.get("inside") and s.get("batch")) or "ranks" in s or not read for s in states)
        and EPOCH_START not in allowed
    ):
        wants.problems.append(
            f"{part.name} keeps its own place ({type(part.target).__name__}), and cannot say which samples are left for another number of ranks: go on with as "
            f'many ranks to the end of the epoch, or begin the epoch again: ckpt.restore(allow=("{EPOCH_START}",))'
        )
    return False


def _gradients(documents: list[Any], wants: _Wants, allowed: Allowed) -> dict[str, Any]:
    kept = [n for d in documents for body in d["gradients"].values() for n in _names_in(body)]
    if kept and OPEN_WINDOW not in allowed:
        wants.problems.append(
            f"it was made inside an accumulation window ({kept[0]} and {len(set(kept)) - 1} more gradients), which are sums over the batches of "
            f"{len(documents)} ranks: go on with as many ranks to the next update, or leave these gradients out, whose samples are then not trained on: "
            f'ckpt.restore(allow=("{OPEN_WINDOW}",))'
        )
    return {n: {} for n in documents[wants.home]["gradients"]}


def _must_agree(name: str, what: str, values: list[Any], wants: _Wants) -> None:
    odd = [r for r, v in enumerate(values) if v != values[0]]
    if odd:
        wants.problems.append(f"{name}: the {what} of rank {odd[0]} of the checkpoint are not those of rank 0")


def _shared(entry: TensorEntry) -> bool:
    return bool(entry.group) or bool(entry.global_shape)


def _same_whole(body: Any, live: torch.Tensor, wants: _Wants) -> bool:
    name = _name_in(body)
    if name is None:
        return False
    entry = wants.entry(wants.home, name)
    return tuple(live.shape) == (entry.global_shape or entry.shape)


def _values(values: Any, fit: Any) -> Any:
    """The state of one parameter, each value through `fit(key, body)`."""
    if isinstance(values, dict) and not any(k.startswith("$") for k in values):
        return {k: fit(k, v) for k, v in values.items()}
    return fit("", values)


def _renamed(body: Any, rank: int, path: str, wants: _Wants) -> Any:
    """`body` of another rank, its tensors under names that are free here."""
    if isinstance(body, list):
        return [_renamed(v, rank, f"{path}.{i}", wants) for i, v in enumerate(body)]
    if not isinstance(body, dict):
        return body
    tag = next((t for t in _TAGS if t in body), None)
    if tag is None:
        return {k: _renamed(v, rank, f"{path}.{k}", wants) for k, v in body.items()}
    wants.whole(body[tag], rank, called=path)
    return body | {tag: path}


def _pairs(body: Any) -> Iterator[tuple[Any, Any]]:
    tag = next((t for t in ("$dict", "$ordered") if t in body), None)
    yield from ((k, v) for k, v in (body[tag] if tag is not None else body.items()))


def _name_in(body: Any) -> str | None:
    """Of the tensor that `body` is."""
    if not isinstance(body, dict):
        return None
    name: str | None = body.get("$tensor", body.get("$part"))
    return name


def _names_in(body: Any) -> Iterator[str]:
    if isinstance(body, list):
        for value in body:
            yield from _names_in(value)
    elif isinstance(body, dict):
        tag = next((t for t in _TAGS if t in body), None)
        if tag is not None:
            yield body[tag]
        else:
            for value in body.values():
                yield from _names_in(value)


def _part(name: str, box: sharding.Box, placed: Sequence[str]) -> Any:
    return {"$part": name, "of": list(box.global_shape), "at": list(box.offset), "placed": list(placed)}


def _first_of(group: str) -> int | None:
    """The lowest rank of a group as `sharding.ranks_text` writes it."""
    text = group.split(",")[0].split("-")[0]
    return int(text) if text.isdecimal() else None
