"""The Unix socket on which the ranks are heard (ranks.py), open before the first of them runs: who connects too early waits, and is not refused."""

import contextlib
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from holdfast_agent.errors import ConfigurationWrong

WAITING = 128
"""Connections that are not taken yet; more ranks than that wait in `connect`."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Owned by whoever serves it."""

    path: Path
    socket: socket.socket


def listen(folder: Path) -> Listening:
    """`folder` is the memory volume, made where it is missing. Raises ConfigurationWrong."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = _path(folder)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        heard = socket.socket(socket.AF_UNIX)
        heard.bind(str(path))
        path.chmod(0o600)
        heard.listen(WAITING)
    except OSError as e:
        raise ConfigurationWrong(f"the memory volume {folder} cannot be used: {e.strerror}") from e
    return Listening(path, heard)


def _path(folder: Path) -> Path:
    """Below the memory volume, or in a fresh private folder where that path is too long for a socket address (107 bytes)."""
    path = folder / "agent.sock"
    if len(os.fsencode(path)) <= 100:
        return path
    return Path(tempfile.mkdtemp(prefix="holdfast-")) / "agent.sock"
