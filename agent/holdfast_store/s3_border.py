"""What must not get past the backends for object stores: endpoints that its libraries cannot use, and their errors that are none of ours.

botocore answers an endpoint that it does not like with a plain ValueError, obstore with a panic of Rust, which is no Exception and passes every
`except` that means well. Both would end whoever waits for the store without a word. Pure but for the wrapping.
"""

import contextlib
import functools
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

from holdfast_store.errors import Misconfigured

P = ParamSpec("P")
S = TypeVar("S", bound=Any)
T = TypeVar("T")
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\Z")
_WRITE = "write http://host:port or https://host:port"


def checked_endpoint(endpoint: str, field: str) -> str:
    """`endpoint` without a slash at its end. Misconfigured names the field, the value, what is wrong with it and what to write."""
    if problem := endpoint_problem(endpoint):
        # A value with an "@" is not repeated: it may hold a password.
        value = "(not shown: it may hold a password)" if "@" in endpoint else repr(endpoint[:200])
        raise Misconfigured(f"{field} {value}: {problem}; {_WRITE}")
    return endpoint.rstrip("/")


def endpoint_problem(endpoint: str) -> str:
    """Why no request could be sent there, or ""."""
    if any(c <= " " or c > "~" for c in endpoint):
        return "blanks and characters beyond ASCII are not possible in an address"
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
    except ValueError as e:
        return str(e)
    if parts.scheme not in ("http", "https"):
        return "it begins with neither http:// nor https://"
    if "@" in parts.netloc:
        return (
            "credentials do not belong into an endpoint: put them into the secret in spec.checkpoint.storage.secretName"
        )
    if parts.query or parts.fragment or "?" in endpoint or "#" in endpoint:
        return "it must end with the port"
    if not host:
        return "it has no host"
    if port == 0:
        return "port 0 is no port"
    return "" if is_address(host) or _HOST.match(host) else f"{host!r} is not the name of a host"


def is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


@contextlib.contextmanager
def border(where: str) -> Iterator[None]:
    """A ValueError or a panic of a library becomes Misconfigured. Errors that the backend reads for what they mean pass."""
    try:
        yield
    except ValueError as e:
        raise Misconfigured(_text(where, e)) from e
    except BaseException as e:
        # The classes have no importable home: pyo3 makes them in each extension, the second for futures.
        if type(e).__name__ not in ("PanicException", "RustPanic"):
            raise
        raise Misconfigured(_text(where, e)) from e


def bordered(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """`border` around a method of something with `settings.where`."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **named: P.kwargs) -> T:
        with border(self.settings.where):
            return method(self, *args, **named)

    return call


def _text(where: str, error: BaseException) -> str:
    said = " ".join(str(error).split())[:300]
    return (
        f"the store's library cannot work with {where}: {said}; check spec.checkpoint.storage (uri, endpoint, region)"
    )
