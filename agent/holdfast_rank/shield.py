"""Runs one training process: `python shield.py <agent's pid> <command...>`, by file path, standard library only.

Why a program of its own: the parent-death signal has to be set in the child between fork and exec, and Python code between the two is not safe in a
process with threads. Without it a killed agent on a laptop would leave ranks training into shared memory that the next attempt uses.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    agent = int(sys.argv[1])
    command = sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != agent:  # it died before the line above
            os._exit(1)
    try:
        os.execvp(command[0], command)  # noqa: S606  the user's own command, as a list
    except OSError as e:
        # As a shell and a container runtime report it (G4).
        sys.stderr.write(f"holdfast-agent: cannot start {command[0]!r}: {e.strerror}\n")
        os._exit(127 if isinstance(e, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
