"""The bridge, the cable of each node, and the host's routes to pods and Services."""

from hack.cluster.errors import ClusterError
from hack.cluster.processes import run, succeeds
from hack.cluster.settings import NodeAddress, Settings


def create_bridge(settings: Settings) -> None:
    run("ip", "link", "add", settings.bridge, "type", "bridge")
    run("ip", "addr", "add", f"{settings.host_ip}/24", "dev", settings.bridge)
    run("ip", "link", "set", settings.bridge, "up")


def refuse_taken(settings: Settings) -> None:
    """Raises before anything is started if another bridge or address of this name is there already."""
    if succeeds("ip", "link", "show", settings.bridge):
        raise ClusterError(
            f"{settings.bridge} exists: another cluster of the name {settings.name!r} runs; "
            f"stop it, or take another --name and --net"
        )
    if f" {settings.host_ip}/" in run("ip", "-4", "addr"):
        raise ClusterError(f"{settings.host_ip} is in use on this machine: take another --net")


def remove_devices(settings: Settings) -> None:
    """Removes cables and bridge, and the routes with them; harmless when they are gone."""
    for device in (*(node.link for node in settings.nodes.values()), settings.bridge):
        succeeds("ip", "link", "del", device)


def plug_in(settings: Settings, node: NodeAddress, pid: int) -> None:
    """A new cable from the bridge into the network namespace of the node's process."""
    succeeds("ip", "link", "del", node.link)
    run(
        *("ip", "link", "add", node.link, "type", "veth"),
        *("peer", "name", "eth0", "address", node.mac, "netns", str(pid)),
    )
    run("ip", "link", "set", node.link, "master", settings.bridge, "up")
    route_to_pods(settings, node)


def route_to_pods(settings: Settings, node: NodeAddress) -> None:
    """The host, and an operator running there, reaches pods through their node."""
    run("ip", "route", "replace", node.pods, "via", node.ip, "dev", settings.bridge)


def route_to_services(settings: Settings) -> None:
    """The host reaches Services through the first node, so not while that one is off."""
    first = next(iter(settings.nodes.values()))
    run("ip", "route", "replace", settings.services_range, "via", first.ip)


def cut(node: NodeAddress) -> None:
    """The cable is out; everything on the node goes on running."""
    run("ip", "link", "set", node.link, "down")


def mend(settings: Settings, node: NodeAddress) -> None:
    run("ip", "link", "set", node.link, "up")
    route_to_pods(settings, node)
