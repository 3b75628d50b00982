"""How an agent finds another: `Member.address` is a pod's IP, or `host:port` where agents share one address (tests, a laptop)."""

from holdfast_api.names import AGENT_PORT


def split(address: str) -> tuple[str, int]:
    """Host and port. IPv6 addresses have two colons or more, or brackets. Raises ValueError for an empty one."""
    if not address:
        raise ValueError("the member has no address yet")
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return host, int(rest[1:]) if rest.startswith(":") else AGENT_PORT
    if address.count(":") == 1:
        host, _, port = address.partition(":")
        return host, int(port)
    return address, AGENT_PORT


def url(address: str, path: str) -> str:
    host, port = split(address)
    return f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"
