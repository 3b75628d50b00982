"""The command lines behind the small programs of this folder: up, down, status, node, load, toolchain."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from hack.cluster import lifecycle, nodes, programs
from hack.cluster.cluster import Node
from hack.cluster.errors import ClusterError, Interrupted
from hack.cluster.paths import DEFAULT_NAME, state_directory
from hack.cluster.state import Store


def up(argv: Sequence[str]) -> None:
    """Start a cluster, building what is missing; harmless when it runs."""
    parser = _parser("up", up)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--grace", type=int, default=12, help="seconds without a heartbeat until a node is Unknown")
    parser.add_argument("--net", default="10.250", help="first half of all addresses")
    parser.add_argument("--no-images", action="store_true", help="without Holdfast's images and torch")
    parser.add_argument("--apiserver-arg", action="append", default=[], help="a further flag of kube-apiserver")
    chosen = parser.parse_args(argv)
    request = lifecycle.Request(
        name=chosen.name,
        state=chosen.state,
        node_count=chosen.nodes,
        grace_seconds=chosen.grace,
        net=chosen.net,
        images=not chosen.no_images,
        apiserver_arguments=tuple(chosen.apiserver_arg),
    )
    print(lifecycle.export_line(lifecycle.up(request)))


def down(argv: Sequence[str]) -> None:
    """Stop the cluster and leave nothing."""
    parser = _parser("down", down)
    parser.add_argument("--keep-logs", action="store_true")
    chosen = parser.parse_args(argv)
    lifecycle.down(_store(chosen), keep_logs=chosen.keep_logs)


def status(argv: Sequence[str]) -> None:
    """Say what runs."""
    print("\n".join(lifecycle.status(_store(_parser("status", status).parse_args(argv)))))


def load(argv: Sequence[str]) -> None:
    """Build Holdfast's images if their sources changed and bring them to the nodes."""
    lifecycle.load_images(_store(_parser("load", load).parse_args(argv)))


def toolchain(argv: Sequence[str]) -> None:
    """Print a folder with helm, kubectl, versitygw, prometheus and promtool, building what is missing."""
    argparse.ArgumentParser(prog="toolchain", description=toolchain.__doc__).parse_args(argv)
    print(programs.toolchain())


def node(argv: Sequence[str]) -> None:
    """Do something to a node: off, on (power); cut, mend (cable); stop, start, kill (a service); run (a command inside)."""
    parser = _parser("node", node)
    parser.add_argument("node")
    parser.add_argument("verb", choices=("off", "on", "cut", "mend", "stop", "start", "kill", "run"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="SERVICE | COMMAND...")
    chosen = parser.parse_args(argv)
    store = _store(chosen)
    if chosen.node not in store.read().settings.nodes:
        raise ClusterError(f"no node {chosen.node!r}: there are {', '.join(store.read().settings.nodes)}")
    if chosen.verb == "run":
        command = [*nodes.enter(store, chosen.node), *chosen.rest]
        os.execvp(command[0], command)
    handle = Node(store, chosen.node)
    service: dict[str, Callable[[str], None]] = {"stop": handle.stop, "start": handle.start, "kill": handle.kill}
    plain: dict[str, Callable[[], None]] = {"off": handle.off, "on": handle.on, "cut": handle.cut, "mend": handle.mend}
    if chosen.verb in plain:
        plain[chosen.verb]()
    elif len(chosen.rest) == 1:
        service[chosen.verb](chosen.rest[0])
    else:
        parser.error(f"{chosen.verb} wants the name of one service")


def _parser(program: str, command: Callable[..., None]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=command.__doc__)
    parser.add_argument(
        "--name", default=DEFAULT_NAME, help="several clusters can run side by side, with another --net each"
    )
    parser.add_argument("--state", type=Path, help="directory for everything the cluster writes")
    return parser


def _store(chosen: argparse.Namespace) -> Store:
    return Store(chosen.state or state_directory(chosen.name))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "up": up,
    "down": down,
    "status": status,
    "load": load,
    "node": node,
    "toolchain": toolchain,
}


def main() -> None:
    signal.signal(signal.SIGTERM, _stop)
    try:
        COMMANDS[sys.argv[1]](sys.argv[2:])
    except (ClusterError, ValueError) as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit("stopped by Ctrl-C")


def _stop(number: int, _frame: FrameType | None) -> None:
    """SIGTERM as an exception, so that what was begun is taken away."""
    raise Interrupted(f"stopped by {signal.Signals(number).name}")


if __name__ == "__main__":
    main()
