"""What the agent starts in place of a training process: `python -I -S stub.py SOCKET ARGUMENTS…`. Standard library only.

Importing torch takes seconds, a thousand times over. So a server has it imported already (server.py) and forks the training process; this stands for it
towards the agent: it ends as the training process ends, and when it is killed the server kills the training process and its workers.
"""

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping


def ask(
    path: str, arguments: list[str], environment: Mapping[str, str], agent: int, files: tuple[int, int]
) -> socket.socket:
    """A training process is forked as soon as the server reads this; `files` are its stdout and stderr. The socket says how it ends; closing it kills it."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    data = json.dumps({"arguments": arguments, "environment": dict(environment), "agent": agent}).encode()
    sent = socket.send_fds(server, [len(data).to_bytes(8, "big")], list(files))
    assert sent == 8
    server.sendall(data)
    return server


def status(server: socket.socket) -> int | None:
    """Exit status as subprocess has it; None if the server is gone."""
    answer = server.recv(16)
    return int(answer) if answer else None


def main() -> None:
    ended = status(ask(sys.argv[1], sys.argv[2:], os.environ, os.getppid(), (1, 2)))
    if ended is None:
        sys.stderr.write("the server of the matrix is gone\n")
        os._exit(99)
    if ended < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-ended, signal.SIG_DFL) if -ended not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -ended)
    os._exit(ended)


if __name__ == "__main__":
    main()
