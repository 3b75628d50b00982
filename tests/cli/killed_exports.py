"""Runs an export again and again, killed by SIGKILL before each of its calls that changes a file system, until one comes to its end. One process, which
forks: starting Python and reading its modules costs more than the exports do. Arguments: the folder (with `bucket`), what of it is watched, the options of the
export. Prints, as JSON, for each try what was there afterwards."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from holdfast_cli.__main__ import app

CHANGES = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "tempfile.mkdtemp"}


def main() -> None:
    folder, options = Path(sys.argv[1]), sys.argv[2:]
    calls, number, parent = 0, 0, os.getpid()

    def count() -> None:
        nonlocal calls
        calls += os.getpid() != parent
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        below = any(isinstance(a, str | os.PathLike) and str(a).startswith(f"{folder}/out") for a in arguments)
        tidies = event in ("os.remove", "os.rmdir") and arguments[1] not in (None, -1)  # by name below an open folder
        if event not in CHANGES or not (below or tidies):
            return
        if event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            count()

    real = os.fsync

    def fsync(fd: int) -> None:
        count()
        real(fd)
        count()

    os.fsync = fsync
    sys.addaudithook(heard)
    while True:
        number += 1
        (folder / "out").mkdir()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            app([*options, "--to", f"{folder}/out/target"], standalone_mode=False)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        target = folder / "out/target"
        files = (
            sorted(p for p in target.rglob("*") if p.is_file())
            if target.is_dir()
            else [target]
            if target.exists()
            else []
        )
        there = {str(p.relative_to(folder / "out")): p.read_bytes().hex() for p in files}
        left = sum(p.name.startswith(".holdfast-export-") for p in (folder / "out").iterdir())
        print(json.dumps({"code": code, "there": target.exists(), "files": there, "left": left}), flush=True)
        (folder / "out").rename(folder / f"was-{number}")
        if code == 0:
            return


if __name__ == "__main__":
    main()
