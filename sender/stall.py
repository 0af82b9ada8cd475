"""Notice a migration that no longer converges, and explain why and what would help.

This module reads no clock and does no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..guest.sizes import format_size
from .convergence import MOMENT, Round

ROUNDS = 3
"""Number of rounds in succession without shrinking that make a stall."""
PERIOD = 1.0
"""Shortest time, in seconds, that these rounds must take together."""
SHRINKS = 0.95
"""A round shrinks if it sends at most this part of the smaller of the two rounds before it."""

WORTH = 0.8
"""An encoding is recommended if it leaves at most this part of the sampled pages."""
LIMITED = 0.8
"""Part of the bandwidth limit above which the limit counts as the bottleneck."""
MISSING = 0.3
"""Part of the dirty pages without a line above which the XBZRLE cache is too small."""


class Remedy(Enum):
    """A parameter that may end a stall, by its name on the command line."""

    MAX_BANDWIDTH = "max-bandwidth"
    AVAIL_SWITCHOVER_BANDWIDTH = "avail-switchover-bandwidth"
    XBZRLE = "xbzrle"
    XBZRLE_CACHE_SIZE = "xbzrle-cache-size"
    COMPRESS = "compress"
    AUTO_CONVERGE = "auto-converge"
    DOWNTIME_LIMIT = "downtime-limit"
    ON_STALL = "on-stall"


_WORDS = {
    Remedy.MAX_BANDWIDTH: "{option} of more than {size}/s, if the link is that fast",
    Remedy.AVAIL_SWITCHOVER_BANDWIDTH: "{option} of more than {size}/s, if the link is that fast: "
    "the limit does not hold while the guest is stopped",
    Remedy.XBZRLE: "{option} would cut this traffic to {part} (estimated from samples)",
    Remedy.XBZRLE_CACHE_SIZE: "{option} of more than {size}: {part} of the dirty pages had no "
    "place in it",
    Remedy.COMPRESS: "{option} zstd would cut this traffic to {part} (estimated from samples)",
    Remedy.AUTO_CONVERGE: "{option} would slow the guest down until the link keeps up",
    Remedy.DOWNTIME_LIMIT: "{option} {milliseconds} would allow a stop that is long enough",
    Remedy.ON_STALL: "{option} switchover would stop the guest for as long as it takes",
}


@dataclass(frozen=True)
class Advice:
    """A remedy for a stall, with the values it is about.

    `size` is in bytes (per second for a bandwidth), `part` a part of 1.
    """

    remedy: Remedy
    size: float = 0.0
    part: float = 0.0
    milliseconds: int = 0

    def words(self, option: Callable[[Remedy], str]) -> str:
        """Return the advice in words; `option` returns the name of a parameter for the reader."""
        return _WORDS[self.remedy].format(
            option=option(self.remedy),
            size=format_size(self.size),
            part=_part(self.part),
            milliseconds=self.milliseconds,
        )


@dataclass(frozen=True)
class Explanation:
    """A stall in words for one kind of reader: `reason` is one line, as is each `advice`."""

    reason: str
    advice: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys reason and advice (a list)."""
        return {"reason": self.reason, "advice": list(self.advice)}


@dataclass(frozen=True)
class Stall:
    """An explained stall: `reason` is one line; `advice` has one remedy each, best first."""

    reason: str
    advice: tuple[Advice, ...]

    def explain(self, option: Callable[[Remedy], str]) -> Explanation:
        """Return it in words; `option` returns the name of a parameter for the reader."""
        return Explanation(self.reason, tuple(advice.words(option) for advice in self.advice))


@dataclass(frozen=True)
class Situation:
    """The facts about a stalled migration.

    Sizes are in bytes, rates in bytes per second, times in seconds. `left` is what each round finds
    and sends. `max_bandwidth` is 0 without a limit; `switchover_is_known` says
    that it is known what the link bears without it. `delta` and `zstd` are the parts of the sampled
    pages that XBZRLE and zstd would leave; None means that the encoding is already on, or that
    nothing is known. `cache_miss_rate` is that of the XBZRLE cache, 0 where it is off. `can_slow`
    says that auto-converge is off and could be switched on.
    """

    bandwidth: float
    left: float
    downtime: float
    downtime_limit: float
    max_bandwidth: int
    switchover_is_known: bool
    delta: float | None
    zstd: float | None
    cache_miss_rate: float
    cache_size: int
    can_slow: bool


class StallDetector:
    """A detector of rounds that no longer shrink."""

    def __init__(self) -> None:
        self._before: deque[int] = deque(maxlen=2)
        self._rounds = 0
        self._seconds = 0.0

    @property
    def stalled(self) -> bool:
        """Return whether the last rounds did not shrink."""
        return self._rounds >= ROUNDS and self._seconds >= PERIOD

    def round_done(self, done: Round) -> None:
        """Record a finished round."""
        # Sizes fluctuate: a round below one large round has not yet got anywhere.
        shrinks = not self._before or done.sent_bytes <= min(self._before) * SHRINKS
        self._before.append(done.sent_bytes)
        if shrinks:
            self.begin_again()
            return
        self._rounds += 1
        self._seconds += done.seconds

    def begin_again(self) -> None:
        """Forget the earlier rounds, because something has changed."""
        self._rounds, self._seconds = 0, 0.0


def explain(now: Situation) -> Stall:
    """Explain the situation in words."""
    reason = (
        f"rounds do not shrink: each finds {format_size(now.left)} to send, at "
        f"{format_size(now.bandwidth)}/s; the guest would be stopped for "
        f"{now.downtime * 1000:.0f} ms, the limit is {now.downtime_limit * 1000:.0f} ms"
    )
    return Stall(reason, tuple(_advice(now)))


def _advice(now: Situation) -> Iterator[Advice]:
    if now.max_bandwidth and now.bandwidth > now.max_bandwidth * LIMITED:
        needed = now.left / max(now.downtime_limit, MOMENT)
        yield Advice(Remedy.MAX_BANDWIDTH, size=needed)
        if not now.switchover_is_known:
            yield Advice(Remedy.AVAIL_SWITCHOVER_BANDWIDTH, size=needed)
    if now.delta is not None and now.delta <= WORTH:
        yield Advice(Remedy.XBZRLE, part=now.delta)
    if now.cache_miss_rate > MISSING:
        yield Advice(Remedy.XBZRLE_CACHE_SIZE, size=now.cache_size, part=now.cache_miss_rate)
    if now.zstd is not None and now.zstd <= WORTH:
        yield Advice(Remedy.COMPRESS, part=now.zstd)
    if now.can_slow:
        yield Advice(Remedy.AUTO_CONVERGE)
    # A margin of 20 %, because the next round may be larger than the last.
    long = -(-int(now.downtime * 1200) // 10) * 10
    yield Advice(Remedy.DOWNTIME_LIMIT, milliseconds=long)
    yield Advice(Remedy.ON_STALL)


def _part(part: float) -> str:
    return f"about {part:.0%}" if part >= 0.01 else "less than 1%"


def command_line_option(remedy: Remedy) -> str:
    """Return the option of `vmferry send` for a remedy."""
    return f"--{remedy.value}"
