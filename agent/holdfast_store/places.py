"""Reading where a store is: bucket and prefix out of a storage URI, and certificates to trust. Pure but for reading the file of certificates."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from holdfast_store.errors import Misconfigured

_PREFIX = re.compile(r"([A-Za-z0-9_=][A-Za-z0-9._=-]*/)*\Z")
MAX_CERTIFICATES_BYTES = 4 << 20


def bucket_and_prefix(uri: str, scheme: str, bucket: re.Pattern[str], names: str) -> tuple[str, str]:
    """The prefix is empty or ends in "/". Misconfigured says what to write; `names` says what `bucket` takes."""
    parts = urlsplit(uri)
    prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
    if not bucket.match(parts.netloc):
        raise Misconfigured(
            f"storage uri {uri!r}: {parts.netloc!r} is no name of {names}; write {scheme}://NAME/PREFIX"
        )
    if not _PREFIX.match(prefix) or ".." in prefix or parts.query or parts.fragment:
        raise Misconfigured(f"storage uri {uri!r}: write the prefix with letters, digits and ._=- only")
    return parts.netloc, prefix


def ca_from(environ: Mapping[str, str], variable: str = "SSL_CERT_FILE") -> bytes | None:
    """The certificates to trust beside the system's (S16), from the file that a variable names."""
    path = environ.get(variable)
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read(MAX_CERTIFICATES_BYTES)
    except OSError as e:
        raise Misconfigured(f"{variable}={path}: {e.strerror or e}") from e
