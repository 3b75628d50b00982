"""A training process that waits, with what takes long to import already imported: `python standby.py MODULE…`, by file path, standard library only.

One line on standard input, {"environment": {…}, "command": [script, argument…]}, makes it the training process: it runs the script as Python itself would
have, as `__main__`, in its own directory's name space, with the standard input of a rank. The end of the input without a line ends it.
"""

import contextlib
import importlib
import importlib.machinery
import json
import os
import sys
import types


def main() -> None:
    for name in sys.argv[1:]:
        with contextlib.suppress(Exception):  # whatever is wrong with it the script will say better
            importlib.import_module(name)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        os._exit(0)
    order = json.loads(line)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.clear()
    os.environ.update(order["environment"])
    become(order["command"])


def become(command: list[str]) -> None:
    """Runs the script in this process. What it raises, and how it exits, is what Python makes of it."""
    script = command[0]
    sys.argv = command
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as e:
        sys.stderr.write(f"{sys.executable}: can't open file {script!r}: {e.strerror}\n")
        sys.exit(2)
    # A module of its own, for the rest of the process's life: threads, exit handlers and children that import the main module find it.
    module = types.ModuleType("__main__")
    module.__dict__.update(
        __file__=script,
        __builtins__=__builtins__,
        __loader__=importlib.machinery.SourceFileLoader("__main__", script),
        __spec__=None,
        __package__=None,
    )
    sys.modules["__main__"] = module
    exec(compile(source, script, "exec", dont_inherit=True), module.__dict__)  # noqa: S102  the user's own script


if __name__ == "__main__":
    main()
