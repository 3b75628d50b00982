"""Starts the library's converter (`python -m holdfast.interop`) and speaks with it.

The command line itself has no torch, and a file of somebody else's is read in a process of its own that gets no credentials: its environment holds what
Python needs to start, and nothing else.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from holdfast_cli.shared import EXIT_DAMAGED, EXIT_USAGE, fail

_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "HOME", "OMP_NUM_THREADS", "VIRTUAL_ENV")


def convert(request: dict[str, Any], progress: Callable[[int, int], None]) -> dict[str, Any]:
    """The answer. Ends the program with one line where torch is missing or the files cannot be converted."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("holdfast") is None:
        fail(
            "this needs PyTorch beside the command line: install holdfast[cli,torch] (an export to safetensors does without)",
            EXIT_USAGE,
        )
    child = subprocess.Popen(
        # -P: -m alone would import from the current directory first, which may be that of the files.
        [sys.executable, "-P", "-W", "ignore", "-m", "holdfast.interop"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C ends it through us, without a traceback of its own
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already: said below
            child.stdin.write(json.dumps(request))
            child.stdin.close()
        answer = _listen(child.stdout, progress)
        child.wait()
    finally:
        child.kill()
        child.wait()
    if answer is None:
        fail(
            f"the converter ended without an answer (status {child.returncode}): -9 is most often a lack of memory",
            EXIT_DAMAGED,
        )
    if "error" in answer:
        fail(str(answer["error"]), EXIT_DAMAGED)
    done: dict[str, Any] = answer["done"]
    return done


def _listen(lines: Any, progress: Callable[[int, int], None]) -> dict[str, Any] | None:
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a library that prints
        if isinstance(message, dict) and "progress" in message:
            progress(*message["progress"])
        elif isinstance(message, dict) and ("done" in message or "error" in message):
            return message
    return None
