"""Arithmetic with times that are not known exactly (`holdfast_api.peers.Span`). Pure and total: what is not a number counts as not known.

A span is three points of a distribution: as a rule (as often less as more), at best and sure (two standard deviations of the logarithm less and more). The
chance to be done in time is that of the normal distribution through them; below the best it counts as none.
"""

import math
from collections.abc import Iterable
from statistics import NormalDist

from holdfast_api.peers import Span

LONG_SECONDS = 1e9
"""Not known, or never."""
AS_A_RULE, SURE = 0.5, 0.5 * (1 + math.erf(math.sqrt(2)))
"""How many are done by the second and the third point."""

NONE = Span(0.0, 0.0, 0.0)
UNKNOWN = Span(0.0, LONG_SECONDS, LONG_SECONDS)
OUTLASTS = SURE / (1 - SURE)
"""What has lasted longer than was ever seen lasts x times as long again with a chance of 1 / (1 + x): once as long as a rule, and surely not this often."""


def tidy(span: Span) -> Span:
    """With three finite numbers, none negative, in order. A NaN makes that point unknown."""
    best, likely, sure = (_bounded(x) for x in (span.best, span.likely, span.sure))
    if math.isnan(span.best):
        best = 0.0
    likely = max(best, likely)
    return Span(best, likely, max(likely, sure))


def then(*spans: Span) -> Span:
    """One after the other."""
    each = [tidy(s) for s in spans]
    return Span(
        min(sum(s.best for s in each), LONG_SECONDS),
        min(sum(s.likely for s in each), LONG_SECONDS),
        min(sum(s.sure for s in each), LONG_SECONDS),
    )


def together(spans: Iterable[Span]) -> Span:
    """Side by side, until the last has ended; nothing for none."""
    each = [tidy(s) for s in spans]
    return Span(
        max((s.best for s in each), default=0.0),
        max((s.likely for s in each), default=0.0),
        max((s.sure for s in each), default=0.0),
    )


def longer(span: Span, factor: float) -> Span:
    return tidy(Span(span.best * factor, span.likely * factor, span.sure * factor))


def less(span: Span, seconds: float) -> Span:
    """What is left of it after `seconds`. What has lasted longer than ever seen may last as long again, or many times as long, but not for ever: else two
    seconds too many would make a deadline two minutes away look close."""
    s = tidy(span)
    gone = _bounded(seconds)
    if gone > s.sure:
        return Span(0.0, gone, min(gone * OUTLASTS, LONG_SECONDS))
    return Span(max(0.0, s.best - gone), max(0.0, s.likely - gone), s.sure - gone)


def chance(span: Span, available_seconds: float) -> float:
    """Of being done in `available_seconds`; 0 if it cannot be. Grows with the time."""
    s = tidy(span)
    a = available_seconds
    if math.isnan(a) or a < s.best or a < 0:
        return 0.0
    if a >= s.sure:
        return SURE
    if a >= s.likely:
        return _normal(2 * _share(a, s.likely, s.sure))
    return _normal(-2 * (1 - _share(a, s.best, s.likely)))


def within(span: Span, confidence: float) -> float:
    """Seconds in which it is done with this chance, which is at least a half: the opposite of `chance`."""
    s = tidy(span)
    share = min(NormalDist().inv_cdf(min(confidence, SURE)) / 2, 1.0)
    if s.likely > 0 and s.sure > s.likely:
        return float(s.likely * (s.sure / s.likely) ** share)
    return s.likely + share * (s.sure - s.likely)


def _normal(deviations: float) -> float:
    return 0.5 * (1 + math.erf(deviations / math.sqrt(2)))


def _share(at: float, low: float, high: float) -> float:
    """How far from `low` to `high`, by factors where that can be."""
    if high <= low:
        return 1.0
    return math.log(at / low) / math.log(high / low) if low > 0 and high / low > 1 else (at - low) / (high - low)


def _bounded(x: float) -> float:
    """NaN is not known: the longest."""
    return LONG_SECONDS if math.isnan(x) else min(max(x, 0.0), LONG_SECONDS)
