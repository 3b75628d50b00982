"""How long things take on this machine, learned from what was seen. Pure values: an observation makes a new one; total: nonsense is not an observation.

Speeds and times spread by factors, not by seconds, so averages and spreads are those of logarithms. Before the first observation a guess stands with a wide
spread; each observation narrows it, and hours without one widen it again. A span's three points (spans.py) lie two standard deviations apart.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from holdfast_agent import spans
from holdfast_api.peers import Span

WEIGHT = 0.25
"""Of the newest observation, once there are four."""
DEVIATIONS = 2.0
LEAST_SPREAD = 0.05
"""Nothing repeats itself more exactly than to 5 %."""
YOUNG = math.log(2.0)
"""What one observation leaves open is half of it, what n leave an (n + 1)th."""
FORGET_PER_HOUR = 0.2
"""An hour without an observation adds so much spread (in quadrature)."""
TAIL_FADES = 0.99
"""Of the longest step that was seen, per step: an evaluation every few hundred steps is remembered until the next."""
HURRY, HURRY_DOUBT = 2.0, math.log(2.0) / DEVIATIONS
"""A save beside training is held back (pace of a flush): until an emergency was seen, it is taken for one to four times as fast."""
MOST_TURNS = 6
"""Of a flush that runs: it shows the store as it is now, but not how the next flush may differ."""
LIMIT_DOUBT = 1.25
"""A save that is held back to a rate takes so much longer at most: what it sends is not known exactly."""
NEW_SHARE_FLOOR = 0.02
LITTLE_BYTES, SOON_SECONDS = 4 << 20, 2.0
"""What is less, and sent sooner, took the time of requests, listings and hashing: it shows what the store does at least, and no more. A worker may by chance
have next to nothing to send of a state that others hold too; it once took the store for 200 times slower than it was, and its job lost its steps."""


@dataclass(frozen=True, slots=True)
class Average:
    """Of a positive number."""

    guess: float
    factor: float
    """The guess may be wrong by this factor, as one standard deviation: wide, because a thing that was never measured is tried rather than refused."""
    mean: float = 0.0
    """Of the logarithm."""
    variance: float = 0.0
    count: int = 0
    at: float = 0.0
    """Of the newest observation, in Unix seconds."""

    def seen(self, value: float, at: float) -> "Average":
        if not (math.isfinite(value) and value > 0 and math.isfinite(at)):
            return self
        newest = math.log(min(max(value, 1e-9), 1e18))
        if not self.count:
            return replace(self, mean=newest, variance=0.0, count=1, at=at)
        weight = max(WEIGHT, 1 / (self.count + 1))
        apart = newest - self.mean
        variance = (1 - weight) * (self.variance + weight * apart * apart)
        return replace(self, mean=self.mean + weight * apart, variance=variance, count=self.count + 1, at=at)

    @property
    def value(self) -> float:
        return math.exp(self.mean) if self.count else self.guess

    def spread(self, now: float) -> float:
        """Standard deviation of the logarithm."""
        if not self.count:
            return math.log(self.factor)
        idle_hours = max(0.0, now - self.at) / 3600 if math.isfinite(now) else 0.0
        forgotten = min(FORGET_PER_HOUR * FORGET_PER_HOUR * idle_hours, YOUNG * YOUNG)
        young = YOUNG / (self.count + 1)
        return math.sqrt(max(self.variance, LEAST_SPREAD * LEAST_SPREAD) + young * young + forgotten)

    def varying_like(self, other: "Average") -> "Average":
        """For a thing that was seen seldom, and that varies as another one does that was seen often."""
        if not self.count or not other.count:
            return self
        variance = max(self.variance, other.variance)
        return replace(self, variance=variance, count=self.count + other.count)

    def seconds(self, now: float) -> Span:
        """Where the number is a time."""
        far = math.exp(DEVIATIONS * self.spread(now))
        return spans.tidy(Span(self.value / far, self.value, self.value * far))

    def seconds_for(self, size: float, now: float, *, times: float = 1.0, doubt: float = 0.0) -> Span:
        """Where the number is a speed, in `size` a second; for something that is `times` as fast, give or take a factor of e to the `doubt`."""
        if math.isnan(size):
            return spans.UNKNOWN
        likely = size / (self.value * times)
        far = math.exp(DEVIATIONS * math.hypot(self.spread(now), doubt))
        return spans.tidy(Span(likely / far, likely, likely * far))


@dataclass(frozen=True, slots=True)
class Estimates:
    """Everything that a worker has measured of itself. Sizes in bytes, speeds in bytes a second, `at` and `now` in Unix seconds."""

    SCHEMA: ClassVar[int] = 1
    step: Average = Average(0.5, 10.0)
    longest_step: float = 0.0
    """Fading."""
    copy: Average = Average(2e9, 5.0)
    node: Average = Average(500e6, 5.0)
    beside: Average = Average(100e6, 10.0)
    """To the store, while training goes on."""
    hurried: Average = Average(100e6, 10.0)
    """To the store, in an emergency."""
    reading: Average = Average(800e6, 4.0)
    """Hashing what the base has already, and does not go to the store."""
    request: Average = Average(0.05, 3.0)
    """One small request to the store, in seconds."""
    taking: Average = Average(300e6, 5.0)
    """Reading another worker's memory."""
    new_share: float = 1.0
    """Of a state's bytes, that the base does not have; the greatest of late."""
    schema: int = 1

    # ---- what is seen

    def stepped(self, seconds: float, at: float) -> "Estimates":
        if not (math.isfinite(seconds) and seconds > 0):
            return self
        return replace(
            self, step=self.step.seen(seconds, at), longest_step=max(seconds, self.longest_step * TAIL_FADES)
        )

    def copied(self, size: int, seconds: float, at: float) -> "Estimates":
        return replace(self, copy=_speed(self.copy, size, seconds, at))

    def on_node(self, size: int, seconds: float, at: float) -> "Estimates":
        return replace(self, node=_speed(self.node, size, seconds, at))

    def flushed(
        self,
        *,
        logical: int,
        sent: int,
        seconds: float,
        emergency: bool,
        based: bool,
        at: float,
        at_its_pace: bool = True,
    ) -> "Estimates":
        """A flush has ended well. `based`: there was a base to lean on. `at_its_pace`: neither held back by a limit that the user has set nor hurried on its
        way; else its time says nothing about the store."""
        if logical <= 0 or sent < 0 or not (math.isfinite(seconds) and seconds > 0):
            return self
        found = self
        if based:
            share = min(1.0, sent / logical)
            found = replace(found, new_share=max(share, (1 - WEIGHT) * found.new_share + WEIGHT * share))
        if not at_its_pace:
            return found
        if sent == 0:
            return replace(found, reading=_speed(found.reading, logical, seconds, at))
        # What is left after the parts that do not grow with what is sent; never nothing.
        sending = max(seconds - self.request.value - (logical - sent) / self.reading.value, seconds / 20)
        before = found.hurried if emergency else found.beside
        if sent < LITTLE_BYTES and sending < SOON_SECONDS and sent / sending < before.value:
            return found
        if emergency:
            return replace(found, hurried=_speed(found.hurried, sent, sending, at))
        return replace(found, beside=_speed(found.beside, sent, sending, at))

    def under_way(self, sent: float, seconds: float, turns: float, *, emergency: bool, at: float) -> "Estimates":
        """A flush that has not ended has sent so much in so long, in so many measurements. It counts until it has ended: then `flushed` sees it whole."""
        if not (math.isfinite(sent) and sent > 0 and math.isfinite(turns) and turns >= 0):
            return self
        before = self.hurried if emergency else self.beside
        seen = _speed(before, sent, seconds, at)
        seen = replace(seen, count=seen.count + int(min(turns, MOST_TURNS)))
        return replace(self, hurried=seen) if emergency else replace(self, beside=seen)

    def taken(self, size: int, seconds: float, at: float) -> "Estimates":
        return replace(self, taking=_speed(self.taking, size, seconds, at))

    def committed(self, seconds: float, at: float) -> "Estimates":
        return replace(self, request=self.request.seen(seconds, at))

    # ---- what is expected

    @property
    def measured(self) -> bool:
        """What an emergency save is made of has been seen: a save beside training shows the store as well, if not at its best."""
        return bool(self.step.count and self.copy.count and (self.hurried.count or self.beside.count))

    def sent_share(self, *, based: bool) -> float:
        """Of a state's bytes, that go to the store."""
        return max(self.new_share, NEW_SHARE_FLOOR) if based else 1.0

    def step_span(self, now: float) -> Span:
        known = self.step.seconds(now)
        tail = max(known.sure, self.longest_step)
        return spans.tidy(Span(known.best, known.likely, tail))

    def copy_span(self, size: int, now: float) -> Span:
        return self.copy.seconds_for(size, now)

    def node_span(self, size: int, now: float) -> Span:
        return self.node.seconds_for(size, now)

    def store_span(self, size: int, now: float, *, based: bool) -> Span:
        """An emergency flush of `size` bytes, with or without a base."""
        sent = size * self.sent_share(based=based)
        known = self.hurried.count > 0
        sending = (
            self.hurried.varying_like(self.beside).seconds_for(sent, now)
            if known
            else self.beside.seconds_for(sent, now, times=HURRY, doubt=HURRY_DOUBT)
        )
        reading = self.reading.seconds_for(size - sent, now)
        return spans.then(sending, reading, self.request_span(now))

    def beside_span(self, size: int, now: float, *, based: bool, limit: int = 0) -> Span:
        """The same beside training, where no more than `limit` bytes a second are sent (0: as many as will)."""
        sent = size * self.sent_share(based=based)
        guessed = self.hurried.count and not self.beside.count
        sending = (
            self.hurried.seconds_for(sent, now, times=1 / HURRY, doubt=HURRY_DOUBT)
            if guessed
            else self.beside.seconds_for(sent, now)
        )
        if limit:
            held_back = sent / limit
            sending = spans.together([sending, Span(0.0, held_back, held_back * LIMIT_DOUBT)])
        return spans.then(sending, self.reading.seconds_for(size - sent, now), self.request_span(now))

    def take_span(self, size: int, now: float) -> Span | None:
        """To take a part of another worker into this one's directory; None where that was never measured: nobody relies on a guess for it."""
        if not self.taking.count:
            return None
        return spans.then(self.taking.seconds_for(size, now), self.node_span(size, now))

    def request_span(self, now: float) -> Span:
        return self.request.seconds(now)


def _speed(average: Average, size: float, seconds: float, at: float) -> Average:
    return average.seen(size / seconds, at) if size > 0 and math.isfinite(seconds) and seconds > 0 else average
