"""The restoring side of a rank: asks the agent, loads what it offers, reports, until something is loaded or nothing is to be.

Called by the main thread, once. Everything that goes wrong here raises: training from something else than was asked for would be worse than not
training.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from holdfast import ahead, filling, reshard, sharding
from holdfast.errors import CheckpointDamaged, HoldfastError, LinkLost, RestoreError, UnsupportedState
from holdfast.load import load_image, load_parts, read_sources
from holdfast.materialise import on_meta
from holdfast.progress import Progress
from holdfast.state import Registry
from holdfast_api import ranks
from holdfast_rank.agent_link import AgentLink

log = logging.getLogger("holdfast")


class Restorer:
    """One start's restore."""

    def __init__(self, link: AgentLink, registry: Registry, progress: Progress) -> None:
        self._link, self._registry, self._progress = link, registry, progress
        self._ahead: ahead.Ahead | None = None
        """What is prepared for the image that is being fetched."""
        self._reshaped: tuple[tuple[int, int], reshard.Reshaped] | None = None
        """Of which checkpoint, and what it becomes for this rank."""

    def run(self) -> tuple[ranks.Welcome, dict[str, Any] | None]:
        """The agent's settings, and the random generators' state to go on with; None after a fresh start. Raises RestoreError, UnsupportedState."""
        try:
            welcome: ranks.Welcome = self._expect(ranks.Welcome)
            empty = on_meta({name: part.module for name, part in self._registry.modules.items()})
            if not empty:  # else once there is something that could be looked at
                self._registry.capture(self._progress, window_open=False)  # refuse now what could not be saved later
            self._link.send(ranks.RestoreWanted(reshards=True, prepares=True))
            while True:
                answer: ranks.RestoreReady | ranks.RestoreBegun | ranks.OtherWorld | ranks.StartFresh = self._expect(
                    ranks.RestoreReady, ranks.RestoreBegun, ranks.OtherWorld, ranks.StartFresh
                )
                if isinstance(answer, ranks.RestoreBegun):
                    self._prepare(answer)
                    continue
                if isinstance(answer, ranks.OtherWorld):
                    self._say_what_is_needed(answer)
                    continue
                if isinstance(answer, ranks.StartFresh):
                    if empty:
                        raise RestoreError(_nothing_to_start_from(empty))
                    self._refuse_what_no_start_would_load()
                    return welcome, None
                generators = self._load(answer)
                if generators is not None:
                    return welcome, generators
        except LinkLost as e:
            raise RestoreError(f"the agent was lost while restoring: {e}") from e
        finally:
            self._let_go()

    def _prepare(self, offer: ranks.RestoreBegun) -> None:
        """Beside the fetch. The agent says so again at each try, and of an older checkpoint after one was rejected."""
        if self._ahead is not None and self._ahead.image.is_of(offer.path, offer.image_bytes):
            return
        self._let_go()
        self._ahead = ahead.begin(offer.path, offer.image_bytes, self._registry.memory)

    def _let_go(self) -> None:
        before, self._ahead = self._ahead, None
        if before is not None:
            before.close()

    def _refuse_what_no_start_would_load(self) -> None:
        """Now, rather than after a month: a checkpoint with such a parameter is refused by every start (C4)."""
        trained = [
            (f"{name}.{key}", sharding.local(parameter.detach()))
            for name, part in self._registry.modules.items()
            for key, parameter in part.module.named_parameters()
            if parameter.requires_grad
        ]
        if (name := filling.first_not_finite(trained)) is not None:
            raise UnsupportedState(
                f"{name} is trained and holds NaN or infinite values before the first step, and no checkpoint with such values is ever loaded: "
                "initialize it before restore(), or set requires_grad to False if it is meant to be so"
            )

    def _say_what_is_needed(self, offer: ranks.OtherWorld) -> None:
        """Of a checkpoint of another number of ranks. Raises RestoreError."""
        sources = len(offer.sources)
        with self._told(f"checkpoint {offer.attempt}/{offer.save} of {sources} ranks"):
            rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
            found = reshard.reshape(read_sources(offer), self._registry, rank, world)
            self._reshaped = (offer.attempt, offer.save), found
            self._link.send(ranks.PartsWanted(offer.attempt, offer.save, found.regions))

    def _load(self, offer: ranks.RestoreReady) -> dict[str, Any] | None:
        """None when the checkpoint is damaged: an older one will be offered (C4)."""
        which = f"checkpoint {offer.attempt}/{offer.save} (boundary {offer.boundary})"
        generators = None
        with self._told(which):
            generators = self._load_as_offered(offer)
            self._link.send(ranks.Loaded(boundary=self._progress.boundary))
        self._let_go()
        return generators

    def _load_as_offered(self, offer: ranks.RestoreReady) -> dict[str, Any]:
        reshaped, self._reshaped = self._reshaped, None
        if reshaped is not None and reshaped[0] == (offer.attempt, offer.save):
            document = reshaped[1].document
            return load_parts(
                document,
                offer.path,
                offer.image_bytes,
                offer.tensors,
                self._registry,
                self._progress,
                finite=offer.finite,
            )
        if self._ahead is not None:
            self._ahead.stop()
        return load_image(
            offer.path,
            offer.image_bytes,
            offer.tensors,
            self._registry,
            self._progress,
            finite=offer.finite,
            image=self._ahead.image if self._ahead is not None else None,
        )

    @contextlib.contextmanager
    def _told(self, which: str) -> Iterator[None]:
        """Whatever goes wrong, the agent hears it. A damaged checkpoint ends the block and nothing else: an older one will be offered (C4)."""
        try:
            yield
        except CheckpointDamaged as e:
            log.error("holdfast: %s is damaged: %s", which, e)
            self._link.send(ranks.LoadFailed(message=f"{which}: {e}", of_checkpoint=True))
        except Exception as e:
            self._link.send(ranks.LoadFailed(message=f"{which}: {type(e).__name__}: {e}", of_checkpoint=False))
            if isinstance(e, HoldfastError):
                raise
            raise RestoreError(f"{which} could not be loaded: {type(e).__name__}: {e}") from e

    def _expect(self, *types: type[Any]) -> Any:
        """The next message of `types`; Refused raises RestoreError with the agent's words."""
        message = self._link.expect(*types, ranks.Refused)
        if isinstance(message, ranks.Refused):
            raise RestoreError(message.message)
        return message


def _nothing_to_start_from(empty: list[str]) -> str:
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    return (
        f"there is no checkpoint yet, and {shown} on the meta device have no content to start from: "
        "on a first start give the model memory (to_empty) and initialize it before restore()"
    )
