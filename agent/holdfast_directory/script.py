"""The training script: started once, told of a notice, and watched."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from holdfast_api import names
from holdfast_directory import processes
from holdfast_directory.finding import OWN
from holdfast_rank import shield

log = logging.getLogger("holdfast")
ENV_DIRECTORY = "HOLDFAST_DIRECTORY"
ENV_RESUME_FROM = "HOLDFAST_RESUME_FROM"
"""Path of the checkpoint that was restored; empty at a fresh start."""
ENV_NOTICE = "HOLDFAST_NOTICE"
"""Path of a file that exists while this pod is to go: {"seconds": what is left, or null}."""


class Script:
    """Main thread, but `tell` and `untell`, which are the reader's."""

    def __init__(self, root: Path, command: Sequence[str], told_by: signal.Signals | None) -> None:
        """`told_by`: the signal that makes the script write a checkpoint, None if none does."""
        self._notice = root / OWN / "notice.json"
        self._root, self._command, self._told_by = root, command, told_by
        self._child: subprocess.Popen[bytes] | None = None
        self.told = False
        """It has been sent the signal since it was started: that it ends with 0 is then no proof that it has finished, even if the notice was taken back
        meanwhile."""
        self.asked = False
        """What it writes next, it writes because of the notice that counts now."""

    @property
    def can_be_told(self) -> bool:
        return self._told_by is not None

    def end_strays(self) -> None:
        """Before anything in the directory is touched: what an earlier life of the script has left running."""
        if strays := processes.end_strays(f"{ENV_NOTICE}={self._notice}"):
            log.warning("holdfast: processes of an earlier start were still running and are ended: %s", strays)

    def start(self, resume_from: Path | None) -> None:
        """A command that cannot be run shows as exit status 126 or 127. It dies with this process: a script that goes on alone would write into what
        the next attempt reads."""
        self._notice.unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if k != names.ENV_SOCKET}
        environment |= {
            ENV_DIRECTORY: str(self._root),
            ENV_RESUME_FROM: str(resume_from or ""),
            ENV_NOTICE: str(self._notice),
            processes.ENV_KEEPER: str(os.getpid()),
        }
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", shield.__file__, str(os.getpid()), *self._command], env=environment
        )

    def poll(self) -> int | None:
        """Exit status as a shell gives it, None while it runs."""
        assert self._child is not None
        code = self._child.poll()
        return None if code is None else code if code >= 0 else 128 - code

    def tell(self, seconds: float | None) -> None:
        """The file first: a script that looks for it when it is signalled finds it. Once; what the script makes of it is its own business."""
        with contextlib.suppress(OSError):  # a full disk must not keep the signal back
            self._notice.parent.mkdir(exist_ok=True)
            temporary = self._notice.with_suffix(".new")
            temporary.write_text(json.dumps({"seconds": seconds}))
            temporary.replace(self._notice)
        if self._told_by is not None and not self.asked and self._child is not None:
            self.told = self.asked = True
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(self._told_by)

    def untell(self) -> None:
        """The notice was taken back."""
        with contextlib.suppress(OSError):
            self._notice.unlink(missing_ok=True)
        self.asked = False
