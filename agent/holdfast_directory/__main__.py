"""Command line: `holdfast-directory PATH [options] -- COMMAND`, under `holdfast-agent run`."""

import argparse
import logging
import os
import re
import signal
import sys
from pathlib import Path

from holdfast_api import __version__, names
from holdfast_directory.finding import DEFAULT_PATTERN, Rule
from holdfast_directory.rank import DirectoryRank, Options
from holdfast_directory.restoring import CannotStart
from holdfast_directory.script import Script
from holdfast_rank.errors import LinkLost

EXIT_USAGE = 71
EXIT_LOST = 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="holdfast-directory",
        description="Keeps a script alive that writes its own checkpoints: each one that is whole is committed, and put back before the next start.",
        usage="holdfast-agent run [...] -- holdfast-directory PATH [options] -- COMMAND ...",
    )
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("path", type=Path, metavar="PATH", help="where the script writes its checkpoints")
    top.add_argument(
        "--pattern",
        default=DEFAULT_PATTERN,
        help="regular expression for a checkpoint's whole name in PATH; its first group is the step (default: a name that ends with digits)",
    )
    top.add_argument("--marker", default="", metavar="FILE", help="a checkpoint is whole when it holds this file")
    top.add_argument(
        "--quiet-seconds",
        type=float,
        default=15.0,
        metavar="N",
        help="without marker and pointer file: when nothing in it has changed for so long (default 15)",
    )
    top.add_argument(
        "--signal",
        default="",
        metavar="NAME",
        help="makes the script write a checkpoint, for example USR1; sent when the pod is to go",
    )
    top.add_argument(
        "--answer-seconds",
        type=float,
        default=20.0,
        metavar="N",
        help="how long it takes to write one then (default 20)",
    )
    return top


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    options, command = parser().parse_args(argv[:cut]), argv[cut + 1 :]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        checked, told_by = _checked(options, command)
    except ValueError as e:
        print(f"holdfast-directory: {e}", file=sys.stderr)
        return EXIT_USAGE
    try:
        return DirectoryRank(checked, Script(checked.root, command, told_by)).run()
    except (CannotStart, LinkLost, OSError) as e:
        print(f"holdfast-directory: {e}", file=sys.stderr)
        return EXIT_LOST


def _checked(options: argparse.Namespace, command: list[str]) -> tuple[Options, signal.Signals | None]:
    """Raises ValueError, which names the option, the value and the remedy."""
    if not command:
        raise ValueError("no command: write it after --, for example `holdfast-directory out -- python train.py`")
    if names.ENV_SOCKET not in os.environ:
        raise ValueError(
            f"{names.ENV_SOCKET} is not set: run it under the agent, `holdfast-agent run --local DIR -- holdfast-directory ...`"
        )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: in directory mode a job has one worker with one process; let that process start the others "
            "(torchrun --standalone --nproc-per-node N train.py)"
        )
    try:
        pattern = re.compile(options.pattern)
    except re.error as e:
        raise ValueError(f"--pattern {options.pattern!r} is no regular expression: {e}") from None
    for name in ("quiet_seconds", "answer_seconds"):
        value = getattr(options, name)
        if not 0 < value <= 86_400:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; write seconds between 0 and 86400")
    if options.marker and (os.path.isabs(options.marker) or ".." in Path(options.marker).parts):
        raise ValueError(f"--marker is {options.marker!r}; write the path of a file inside a checkpoint")
    told_by = None
    if options.signal:
        name = "SIG" + options.signal.upper().removeprefix("SIG")
        if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
            raise ValueError(
                f"--signal is {options.signal!r}; write a signal that a script can catch, for example USR1"
            )
        told_by = signal.Signals[name]
    root = options.path.absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"PATH {root} cannot be made: {e.strerror}") from None
    rule = Rule(pattern, options.marker, options.quiet_seconds)
    return Options(root, rule, options.answer_seconds), told_by


if __name__ == "__main__":
    sys.exit(main())
