"""Times as clouds and controllers write them into texts, labels and taints. Pure and total: whatever the text, the answer is a time in UTC or None."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:[Zz]|[+-]\d{2}:\d{2})")
_RFC1123 = re.compile(r"(?:[A-Z][a-z]{2},\s+)?(\d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2}) (?:GMT|UTC)")
_UNIX = re.compile(r"\d{9,10}(?:\.\d+)?")


def in_text(text: str) -> datetime | None:
    """The first time that a text names: RFC 3339 with a zone (AWS, Karpenter), RFC 1123 with or without its weekday (Azure, AWS maintenance), or nothing but
    Unix seconds (cluster autoscaler, Google's labels). A time without a zone means something else on every machine: None."""
    words = " ".join(text.split())
    if _UNIX.fullmatch(words):
        return datetime.fromtimestamp(int(words.partition(".")[0]), UTC)
    found = [m for m in (_RFC3339.search(words), _RFC1123.search(words)) if m is not None]
    first = min(found, key=lambda m: m.start(), default=None)
    if first is None:
        return None
    try:
        if first.re is _RFC3339:
            return datetime.fromisoformat(first[0].upper()).astimezone(UTC)
        return parsedate_to_datetime(f"{first[1]} GMT").astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def after(moment: datetime, seconds: float) -> datetime:
    """`moment` plus `seconds`; a moment at the end of the calendar stays where it is."""
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return moment
