"""Command line: `holdfast-agent run -- COMMAND` in a pod, `holdfast-agent run --local DIR -- COMMAND` anywhere else.

The agent itself is imported when everything that does not need it has been done: on a laptop the ranks run by then (headstart.py).
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from holdfast_agent import headstart, laptop, settings
from holdfast_agent.errors import ConfigurationWrong
from holdfast_agent.headstart import HeadStart
from holdfast_agent.settings import Settings
from holdfast_api import __version__
from holdfast_api.errors import ContractError
from holdfast_api.layout import CheckpointRef, checked_uid
from holdfast_api.messages import Exit, RestoreOrder
from holdfast_api.names import EXIT_CODES
from holdfast_store.errors import StoreError

DEFAULT_EVERY_SECONDS = 600
ENV_BACKGROUND = "HOLDFAST_BACKGROUND_BYTES_PER_SECOND"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="holdfast-agent", description="Runs training processes and keeps their state safe."
    )
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(dest="verb", required=True)
    look = verbs.add_parser("doctor", help="say what this machine and configuration give: slots in memory, disk, store")
    look.add_argument(
        "--local", metavar="DIR", type=Path, help="as for run; without it the pod's own configuration is examined"
    )
    look.add_argument("--processes", type=int, default=1, help="training processes, with --local (default 1)")
    look.add_argument(
        "--image-mib", type=int, default=0, metavar="N", help="size of one process's state; default: say what would fit"
    )
    look.add_argument("-o", "--output", choices=["text", "json"], default="text")
    run = verbs.add_parser(
        "run", help="run a command under the agent", usage="holdfast-agent run [--local DIR [options]] -- COMMAND ..."
    )
    run.add_argument(
        "--local",
        metavar="DIR",
        type=Path,
        help="without Kubernetes: keep checkpoints in this directory and resume from it",
    )
    run.add_argument("--processes", type=int, default=1, help="training processes to start (default 1)")
    run.add_argument("--workers", type=int, default=1, help="machines; only 1 is possible without Kubernetes")
    often = run.add_mutually_exclusive_group()
    often.add_argument("--every-steps", type=int, metavar="N", help="take a checkpoint every N steps")
    often.add_argument(
        "--every-seconds",
        type=int,
        metavar="N",
        help=f"take one every N seconds (default {DEFAULT_EVERY_SECONDS})",
    )
    often.add_argument(
        "--every-auto",
        action="store_true",
        help="choose the interval from what a save costs and how often it is needed",
    )
    run.add_argument("--chunk-mib", type=int, default=16, help="size of a chunk in MiB (default 16)")
    run.add_argument(
        "--background-bytes-per-second",
        type=int,
        metavar="N",
        help="what saves beside training may write to DIR, on average; never an emergency's "
        f"(default {ENV_BACKGROUND}, else no limit)",
    )
    run.add_argument("--fresh", action="store_true", help="start from nothing if no checkpoint can be used")
    run.add_argument(
        "--resume-from",
        metavar="UID",
        default="",
        help="with --local: go on from the checkpoint of `holdfast import` that has this job uid",
    )
    run.add_argument(
        "--trust",
        metavar="ATTEMPT/SAVE",
        action="append",
        default=[],
        help="with --local: a checkpoint that is used although something was found in it (copies that differ, a failed check); every byte is verified",
    )
    run.add_argument(
        "--accept-suspect", action="store_true", help="with --local: use checkpoints whose copies differ like any other"
    )
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    return top


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s holdfast-agent %(levelname)s %(message)s", stream=sys.stderr
    )
    if options.verb == "doctor":
        return _doctor(options)
    command = tuple(options.command[1:] if options.command[:1] == ["--"] else options.command)
    try:
        if not command:
            raise ConfigurationWrong(
                "no command: write it after --, for example `holdfast-agent run -- python train.py`"
            )
        if options.local:
            _run(*_local(options, command))
        _run(settings.from_environment(settings.process_environment(), command))
    except (ConfigurationWrong, ContractError, StoreError) as e:
        print(f"holdfast-agent: {e}", file=sys.stderr)
        return EXIT_CODES[Exit.CONFIGURATION_WRONG]


def _run(ready: Settings, begun: HeadStart | None = None) -> NoReturn:
    from holdfast_agent.run import main as run_agent
    from holdfast_store import retry

    retry.without_a_line_per_try()
    run_agent(ready, begun)


def _doctor(options: argparse.Namespace) -> int:
    """0 if nothing has to be changed, 1 if something has to, 71 if the configuration cannot be read."""
    from holdfast_agent import doctor
    from holdfast_store import retry

    retry.without_a_line_per_try()
    environ = settings.process_environment()
    try:
        config = laptop.examined(options.local, options.processes) if options.local else settings.config_from(environ)
        if options.image_mib < 0:
            raise ConfigurationWrong(
                f"--image-mib is {options.image_mib}; write the size of one process's state in MiB"
            )
        answers = doctor.examine(config, environ, options.image_mib << 20, options.local)
    except (ConfigurationWrong, ContractError) as e:
        print(f"holdfast-agent: {e}", file=sys.stderr)
        return EXIT_CODES[Exit.CONFIGURATION_WRONG]
    print(doctor.render(answers, options.output))
    return 0 if all(a.ok for a in answers) else 1


def _local(options: argparse.Namespace, command: tuple[str, ...]) -> tuple[Settings, HeadStart]:
    """The ranks run when it returns."""
    if options.workers != 1:
        raise ConfigurationWrong(
            f"--workers is {options.workers}: without Kubernetes one machine is used; use --processes for several processes"
        )
    for name, value in (("--every-steps", options.every_steps), ("--every-seconds", options.every_seconds)):
        if value is not None and value < 1:
            raise ConfigurationWrong(f"{name} is {value}; write 1 or more")
    chosen = options.every_steps or options.every_auto
    every_seconds = options.every_seconds or (0 if chosen else DEFAULT_EVERY_SECONDS)
    if options.resume_from:
        checked_uid(options.resume_from)
        if options.fresh:
            raise ConfigurationWrong("--fresh and --resume-from exclude each other: remove one of them")
    trusted = tuple(_checkpoint("--trust", name) for name in options.trust)
    limit = _background(options.background_bytes_per_second, settings.process_environment())
    held = laptop.take(options.local)
    ready = laptop.settings(
        held,
        options.local,
        command,
        processes=options.processes,
        every_steps=options.every_steps or 0,
        every_seconds=every_seconds,
        every_auto=options.every_auto,
        chunk_bytes=options.chunk_mib << 20,
        background_bytes_per_second=limit,
    )
    order = laptop.order(
        ready,
        held.next_attempt(),
        RestoreOrder(
            fresh=options.fresh,
            resume_from_uid=options.resume_from,
            trusted=trusted,
            accept_suspect=options.accept_suspect,
        ),
    )
    return ready, headstart.begin(held, ready, order)


def _checkpoint(option: str, name: str) -> CheckpointRef:
    try:
        return CheckpointRef.parse(name)
    except ValueError as e:
        raise ConfigurationWrong(f"{option}: {e}") from None


def _background(option: int | None, environ: Mapping[str, str]) -> int:
    """Bytes per second, 0 for no limit. The option goes before the variable."""
    name, value = "--background-bytes-per-second", str(option)
    if option is None:
        name, value = ENV_BACKGROUND, environ.get(ENV_BACKGROUND, "")
        if not value:
            return 0
    if not value.isascii() or not value.isdecimal() or not 0 < int(value) <= 1 << 40:
        raise ConfigurationWrong(f"{name} is {value!r}; write bytes per second, from 1 to {1 << 40}, or leave it out")
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
