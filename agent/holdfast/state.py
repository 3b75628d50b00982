"""What a rank's state consists of: the registered parts, the loaders' positions, the random generators, the counters.

`Registry.capture` makes of them one JSON document and a set of named tensors; `Registry.load` is its opposite. Nothing here knows of images,
slots or agents.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset

from holdfast import rng, sharding, tree
from holdfast.allowed import Allowed, Apart
from holdfast.describe import Dataset
from holdfast.errors import CheckpointDamaged, RestoreError
from holdfast.gradients import OpenGradients
from holdfast.loader import LoaderPart, Position
from holdfast.module_part import ModulePart
from holdfast.optimizer_part import OptimizerPart
from holdfast.part import LARGE_BYTES, Leaves, NotLive, Part
from holdfast.parts import is_loader, part_for
from holdfast.progress import Progress
from holdfast.stateful_part import StatefulPart
from holdfast_api import codec
from holdfast_api.errors import ContractError

SCHEMA = 1
log = logging.getLogger("holdfast")


@dataclass(frozen=True)
class Captured:
    """One rank's state at a boundary, not copied yet: `tensors` are the live ones."""

    document: dict[str, Any]
    leaves: Leaves


class Small(NamedTuple):
    """What belongs to one boundary and is small: copied there, so that the rest can be copied later (I2, I6)."""

    progress: Progress
    window_open: bool
    """No optimizer had stepped, and there were no gradients: otherwise there is no such copy."""
    parts: dict[str, Any]
    positions: dict[str, Any]


class Ended(NamedTuple):
    """What was small when a pass over a loader ended."""

    small: Small
    generators: dict[str, Any]


class Registry:
    """The registered parts by name. Main thread only, but for `render`."""

    def __init__(self, targets: dict[str, Any]) -> None:
        """Raises TypeError or ValueError for what cannot be registered, UnsupportedState for what this release refuses."""
        self.parts: dict[str, Part] = {}
        self.positions: dict[str, Position] = {}
        self._unclaimed: dict[str, Any] = {}
        self.dataset: Dataset | None = None
        """As it was described."""
        self.allowed = Allowed()
        self.updated = False
        """An optimizer has stepped since the last boundary: no accumulation window is open. Without a torch optimizer it stays False, and
        whatever gradients there are at a boundary count as open: too much is saved rather than too little."""
        self._ever_stepped: set[int] = set()
        for name, target in targets.items():
            if name == "holdfast" or name.startswith("batches"):
                raise ValueError(f"the name {name!r} is reserved; register it under another")
            if target is not None:
                self._register(name, target)
        self.modules = {n: p for n, p in self.parts.items() if isinstance(p, ModulePart)}
        self.optimizers = {n: p for n, p in self.parts.items() if isinstance(p, OptimizerPart)}
        self.open_gradients = OpenGradients(o.optimizer for o in self.optimizers.values())
        self._watch_optimizers()
        for position in self.positions.values():
            self._refuse_two_places(position.loader)

    @property
    def planned(self) -> bool:
        """Every optimizer has its state or has shown that it keeps none, so that the layout will stay (I9)."""
        return all(len(p.inner.state) > 0 or id(p.optimizer) in self._ever_stepped for p in self.optimizers.values())

    def position(self, loader: Any) -> Position:
        """The position of `loader`, a new one if it was not registered: those are told apart by the order of their first use. Raises ValueError
        for one that keeps its place by itself and was not registered: nobody would save that place (K1)."""
        for position in self.positions.values():
            if position.loader is loader:
                return position
        if hasattr(loader, "load_state_dict"):
            raise ValueError(
                f"{type(loader).__name__} keeps its place by itself (load_state_dict), so it must be registered: Checkpointer(loader=...)"
            )
        self._refuse_two_places(loader)
        name = f"batches.{sum(n.startswith('batches.') for n in self.positions)}"
        position = self.positions[name] = Position(loader)
        if name in self._unclaimed:
            position.load(self._unclaimed.pop(name))
        return position

    def capture(self, progress: Progress, *, window_open: bool, gradients: Sequence[torch.Tensor] = ()) -> Captured:
        """Lists everything; copies nothing but the small state. `window_open`: gradients belong to the state (I2); else only `gradients` do. Raises
        UnsupportedState."""
        leaves = Leaves()
        only = None if window_open else {id(g) for g in gradients}
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "progress": {"boundary": progress.boundary, "updates": progress.updates},
            "parts": {name: part.capture(leaves) for name, part in self.parts.items()},
            "kinds": self._kinds(),
            "gradients": self._capture_gradients(leaves, only) if window_open or only else {},
            "rng": tree.encode(rng.capture(), "rng", leaves.tensors),
        }
        positions = {n: p.state() for n, p in self.positions.items()} | self._unclaimed
        document["positions"] = tree.encode(positions, "positions", leaves.tensors)
        return Captured(document | self._data(), leaves)

    def has_gradients(self) -> bool:
        return any(holder.has_gradients() for holder in self._holders().values())

    def memory(self) -> list[torch.Tensor]:
        """The modules' tensors that have memory: what a load fills."""
        found = (t for part in self.modules.values() for t in chain(part.module.parameters(), part.module.buffers()))
        return [sharding.local(t.detach()) for t in found if not t.is_meta]

    def _holders(self) -> dict[str, ModulePart | OptimizerPart]:
        """Who has parameters that no other part has."""
        return {**self.modules, **self.optimizers}

    def _capture_gradients(self, leaves: Leaves, only: set[int] | None) -> dict[str, Any]:
        found = {n: p.capture_gradients(leaves, only) for n, p in self._holders().items()}
        return {n: body for n, body in found.items() if body or n in self.modules}

    def note_end(self, progress: Progress) -> Ended:
        """What is small, generators included, as it is now: a pass over a loader has ended, and what the script does afterwards is no part of this
        boundary's state."""
        return Ended(self.snapshot(progress, window_open=False), rng.capture())

    def as_of(self, ended: Ended, captured: Captured) -> Captured:
        """`captured`, but what is small as it was at that end. An object with large tensors of its own stays whole as it is: nobody has kept those.
        Raises NotLive where the parts have changed their form since."""
        leaves, parts = Leaves(), captured.document["parts"].copy()
        if parts.keys() != ended.small.parts.keys():
            raise NotLive("parts were added or removed")
        for name, part in self.parts.items():
            own = Leaves()
            then = part.render(ended.small.parts[name], parts[name], own)
            if not any(t.nbytes > LARGE_BYTES for t in own.tensors.values()):
                parts[name] = then
                leaves.tensors |= own.tensors
                leaves.tiers |= own.tiers
        document = captured.document | {
            "parts": parts,
            "rng": tree.encode(ended.generators, "rng", leaves.tensors),
            "positions": tree.encode(ended.small.positions, "positions", leaves.tensors),
        }
        captured.leaves.tensors |= leaves.tensors
        captured.leaves.tiers |= leaves.tiers
        return Captured(document, captured.leaves)

    def snapshot(self, progress: Progress, *, window_open: bool) -> Small:
        """The small state at this boundary, random generators left out."""
        return Small(
            progress.copy(),
            window_open,
            {name: part.snapshot() for name, part in self.parts.items()},
            {n: p.state() for n, p in self.positions.items()} | self._unclaimed,
        )

    def settings(self) -> dict[str, Any]:
        """The small state of the parts that are no loaders, copied."""
        return {name: part.snapshot() for name, part in self.parts.items() if name not in self.positions}

    def unchanged(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Those of `settings` that are what they were."""
        return {n: s for n, s in settings.items() if _same(s, self.parts[n].snapshot())}

    def put_settings_back(self, settings: dict[str, Any]) -> list[str]:
        """Returns the names of the parts that had changed."""
        changed = [n for n in settings if n not in self.unchanged(settings)]
        with torch.no_grad():
            for name in changed:
                self.parts[name].put_back(settings[name])
        return changed

    def render(self, small: Small, template: dict[str, Any], generators: dict[str, Any]) -> Captured:
        """What `capture` would have said at the boundary of `small`; of tensors only those that `small` holds. Any thread: looks at nothing but
        its arguments and the parts' names. `template`: the document of an earlier capture. Raises NotLive, UnsupportedState."""
        leaves, parts = Leaves(), template["parts"]
        if parts.keys() != small.parts.keys():
            raise NotLive("parts were added or removed")
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "progress": {"boundary": small.progress.boundary, "updates": small.progress.updates},
            "parts": {n: p.render(small.parts[n], parts[n], leaves) for n, p in self.parts.items()},
            "kinds": template.get("kinds", {}),
            "gradients": {n: {} for n in self.modules} if small.window_open else {},
            "rng": tree.encode(generators, "rng", leaves.tensors),
        }
        document["positions"] = tree.encode(small.positions, "positions", leaves.tensors)
        return Captured(document | self._data(), leaves)

    def compare(self, document: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises RestoreError that lists everything that does not fit, both ways; touches nothing."""
        if document.get("schema") != SCHEMA:
            raise RestoreError(
                f"the state in the checkpoint has schema {document.get('schema')!r}, this release reads {SCHEMA}"
            )
        saved = document["parts"]
        problems = self._compare_data(document.get("dataset"))
        names = self._names_apart(document)
        left = names.but(self.allowed)
        if left.missing or left.extra:
            problems.append(
                f"registered here but not in the checkpoint: {sorted(left.missing)}; in the checkpoint but not registered: {sorted(left.extra)}"
            )
        for name in sorted(saved.keys() & self.parts.keys()):
            part, body = self.parts[name], saved[name]
            if problem := self._another_kind(name, part, body, document.get("kinds", {}).get(name, "")):
                problems.append(problem)
                continue
            part.allowed = self.allowed
            names |= part.apart(body)
            problems += part.compare(body, tensors)
        if remedy := names.but(self.allowed).remedy():
            problems.append(remedy)
        if problems:
            raise RestoreError("the checkpoint does not fit this program:\n  " + "\n  ".join(problems))
        taken = names.taken(self.allowed)
        if taken.missing or taken.extra:
            log.warning(
                "holdfast: as was allowed, these stay as the script made them: %s; these are left out: %s",
                sorted(taken.missing),
                sorted(taken.extra),
            )

    def _names_apart(self, document: dict[str, Any]) -> Apart:
        """Of the parts, and of the loaders whose place is counted. What an import has left to the script (`anew`) is on both sides, and it knows no loaders."""
        anew = document.get("anew")
        loaders, saved = _registered(self.positions), _registered(document["positions"])
        here = set(self.parts) | (loaders & saved if anew is not None else loaders)
        there = set(document["parts"]) | set(anew or ()) | saved
        return Apart(frozenset(here - there), frozenset(there - here))

    def _another_kind(self, name: str, part: Part, body: Any, kind: str) -> str:
        form = "loose" if isinstance(part, ModulePart) else "orphans" if isinstance(part, OptimizerPart) else ""
        if form and not (isinstance(body, dict) and form in body):
            return f"{name} is {'a module' if form == 'loose' else 'an optimizer'} here, and not in the checkpoint"
        if kind and part.kind and kind != part.kind:
            return (
                f"{name} is {part.kind} here, and was {kind} in the checkpoint, whose state means something else: use {kind}; or begin anew with {part.kind} "
                f'under another name, and accept both: ckpt.restore(allow=("extra:{name}", "missing:THE OTHER NAME"))'
            )
        return ""

    def load(self, document: dict[str, Any], tensors: Mapping[str, torch.Tensor], progress: Progress) -> dict[str, Any]:
        """Copies everything into the registered objects, counters included; what an import has left to the script (`anew`) is as the script made it.
        Returns the random generators' state, which the caller puts back last."""
        for name, part in self.parts.items():
            if name in document["parts"]:
                part.load(document["parts"][name], tensors)
        for name, holder in self._holders().items():
            holder.load_gradients(document["gradients"].get(name, {}), tensors)
        positions = tree.decode(document["positions"], tensors)
        for name, position in self.positions.items():
            if name in positions:
                position.load(positions.pop(name))
        # Those of loaders that the script has not made yet. A registered one that is gone, as was allowed, is gone.
        self._unclaimed = {n: p for n, p in positions.items() if n not in _registered(positions)}
        progress.boundary, progress.updates = document["progress"]["boundary"], document["progress"]["updates"]
        generators: dict[str, Any] = tree.decode(document["rng"], tensors)
        return generators

    def _kinds(self) -> dict[str, str]:
        return {name: part.kind for name, part in self.parts.items() if part.kind}

    def _data(self) -> dict[str, Any]:
        return {} if self.dataset is None else {"dataset": asdict(self.dataset)}

    def _compare_data(self, saved: Any) -> list[str]:
        here = self.dataset
        if (
            "data-files" in self.allowed
            or here is None
            or not here.files
            or not isinstance(saved, dict)
            or saved["files"] <= here.files
        ):
            return []
        return [
            f"data_files: {here.files} files of {here.bytes} bytes here, {saved['files']} files of {saved['bytes']} bytes when the checkpoint was made: "
            'put the missing ones back, or accept that their samples are left out: ckpt.restore(allow=("data-files",))'
        ]

    def _register(self, name: str, target: Any) -> None:
        part = part_for(name, target)
        if is_loader(target):
            self.positions[name] = Position(target)
            if type(part) is StatefulPart:
                part = LoaderPart(name, self.positions[name])
        if part is not None:
            self.parts[name] = part

    def _refuse_two_places(self, loader: Any) -> None:
        """An iterable data set that is put to its place, under a loader that is then read up to that place from there: samples would be lost (K1)."""
        data = getattr(loader, "dataset", None)
        if hasattr(loader, "load_state_dict") or not isinstance(data, IterableDataset):
            return
        for name, part in self.parts.items():
            if isinstance(part, StatefulPart) and part.target is data:
                raise ValueError(
                    f"{name} is the data set that {type(loader).__name__} reads: the place would be kept twice, and samples be left out "
                    "after a resume. Register the loader alone; to go on by the data set's own state, read it by torchdata's StatefulDataLoader"
                )

    def _watch_optimizers(self) -> None:
        held = {id(p) for part in self.modules.values() for p in part.module.parameters()}
        replicas = {i: g for part in self.modules.values() for i, g in part.replicas().items()}
        called = {
            id(p): f"{name}.{key}" for name, part in self.modules.items() for key, p in part.module.named_parameters()
        }
        also = {
            f"{name}.{key}": id(p)
            for name, part in self.modules.items()
            for key, p in part.module.named_parameters(remove_duplicate=False)
        }
        for part in self.optimizers.values():
            part.held, part.names, part.also, part.replicas = held, called, also, replicas
            part.optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.updated = True
        self._ever_stepped.add(id(optimizer))
        self.open_gradients.stepped(optimizer)


def _registered(positions: Collection[str]) -> set[str]:
    """Without those that are told apart by the order of their first use."""
    return {name for name in positions if not name.startswith("batches.")}


def _same(one: Any, other: Any) -> bool:
    first: tree.Tensors = {}
    second: tree.Tensors = {}
    return tree.encode(one, "", first) == tree.encode(other, "", second) and all(
        t.shape == second[n].shape and t.dtype == second[n].dtype and torch.equal(t, second[n])
        for n, t in first.items()
    )


def read_document(text: bytes) -> dict[str, Any]:
    """The JSON state of an image. Raises CheckpointDamaged; RestoreError for one of directory mode."""
    try:
        document = codec.parse(text, max_bytes=1 << 30)
        if "directory" in document:
            raise RestoreError(
                "the checkpoint was made in directory mode, of a script's own files, and not through the library: run the script that made it "
                "(checkpoint.source: directory), or start a job of another name"
            )
        for key in ("progress", "parts", "gradients", "rng", "positions"):
            if not isinstance(document[key], dict):
                raise CheckpointDamaged(f"the state in the image has no object {key!r}")
        int(document["progress"]["boundary"]), int(document["progress"]["updates"])
    except (ContractError, KeyError, TypeError, ValueError) as e:
        raise CheckpointDamaged(f"the state in the image is not readable: {e}") from e
    return document  # type: ignore[no-any-return]
