"""What this worker's slots hold, for the workers that need the same bytes: a survivor gives from memory what a replacement would read from the store (A2, J4).

Named by content, so whoever asks can tell by itself whether it was given what it asked for, and does: nothing here vouches for a byte, and what has been
overwritten meanwhile costs a fetch from the next source. Only chunks of a manifest that was read for this attempt are given, by their digests. No memory is
taken: pieces go from the slot to the socket.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from holdfast_agent.mappings import Mappings
from holdfast_api.manifest import RankManifest
from holdfast_store.chunks import digest

MOST_AT_ONCE = 8
"""Chunks on their way to others; who asks for one more waits."""


class NotHere(Exception):
    """It is in no slot of this worker."""


class NotYet(Exception):
    """What the slots hold is not known yet: ask again, or somebody else."""


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    length: int
    image_bytes: int


class Giving:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._texts: dict[str, bytes] = {}
        self._known = self._closed = False
        self._turn = asyncio.Semaphore(MOST_AT_ONCE)
        self.given_bytes = 0

    def holds(self, manifest: RankManifest, path: Path) -> None:
        """The slot at `path` has this image, or is believed to."""
        at = 0
        for chunk in manifest.chunks:
            self._places.setdefault(chunk.digest, _Place(path, at, chunk.length, manifest.image_bytes))
            at += chunk.length

    def saved(self, images: Iterable[tuple[RankManifest, Path]], texts: Iterable[bytes]) -> None:
        """What the slots hold now, instead of all that they held before, and the manifests' own bytes."""
        if self._closed:
            return
        self._places, self._known = {}, True
        for manifest, path in images:
            self.holds(manifest, path)
        self._texts = {digest(text): text for text in texts}

    def copy(self, name: str, view: memoryview, slots: Mappings) -> bool:
        """Whether `view` has been filled with what is believed to be `name`'s bytes. Any thread."""
        place = self._places.get(name)
        if place is None or place.length != view.nbytes:
            return False
        try:
            use = slots.read(place.path, place.image_bytes)
        except OSError:
            return False
        try:
            view[:] = use.view[place.offset : place.offset + place.length]
        finally:
            use.close()
        return True

    def known(self) -> None:
        """Everything that the slots hold has been said: what is asked for beside it is not here."""
        self._known = True

    def close(self) -> None:
        """The slots are somebody else's from now on."""
        self._closed = True
        self._places, self._texts = {}, {}

    @contextlib.asynccontextmanager
    async def open(self, name: str, slots: Mappings) -> AsyncIterator[memoryview]:
        """The bytes that are believed to be `name`'s, until the body ends. Raises NotHere or NotYet."""
        async with self._turn:
            if (text := self._texts.get(name)) is not None:
                yield memoryview(text)
                return
            place = self._places.get(name)
            if place is None:
                raise NotYet if not (self._known or self._closed) else NotHere
            try:
                use = slots.read(place.path, place.image_bytes)
            except OSError as e:
                raise NotHere from e
            view = use.view[place.offset : place.offset + place.length]
            try:
                yield view
                self.given_bytes += place.length
            finally:
                with contextlib.suppress(
                    BufferError
                ):  # the transport of a request that was cut lets go of it a moment later
                    view.release()
                use.close()
