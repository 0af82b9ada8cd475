"""Notice a migration that no longer converges, and explain why and what would help.

This module reads no clock and does no I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Stall:
    """An explained stall: `reason` is one line; `advice` has one line per remedy, best first."""

    reason: str
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Situation:
    """The facts about a stalled migration.

    Sizes are in bytes, rates in bytes per second, times in seconds. `left` is what each round finds
    and sends. `max_bandwidth` is 0 without a limit. `delta` and `zstd` are the parts of the sampled
    pages that XBZRLE and zstd would leave; None means that the encoding is already on, or that
    nothing is known. `cache_miss_rate` is that of the XBZRLE cache, 0 where it is off. `can_slow`
    says that auto-converge is off and could be switched on.
    """

    bandwidth: float
    left: float
    downtime: float
    downtime_limit: float
    max_bandwidth: int
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


def _advice(now: Situation) -> list[str]:
    advice = []
    if now.max_bandwidth and now.bandwidth > now.max_bandwidth * LIMITED:
        enough = now.left / max(now.downtime_limit, MOMENT)
        advice.append(f"--max-bandwidth of more than {format_size(enough)}, if the link bears it")
    if now.delta is not None and now.delta <= WORTH:
        advice.append(f"--xbzrle: {_part(now.delta)} of these bytes, by the pages sampled")
    if now.cache_miss_rate > MISSING:
        advice.append(
            f"--xbzrle-cache-size of more than {format_size(now.cache_size)}: "
            f"{now.cache_miss_rate:.0%} of the dirty pages had no place in it"
        )
    if now.zstd is not None and now.zstd <= WORTH:
        advice.append(f"--compress zstd: {_part(now.zstd)} of these bytes, by the pages sampled")
    if now.can_slow:
        advice.append("--auto-converge: slow the guest down until it can be kept up with")
    # A margin of 20 %, because the next round may be larger than the last.
    long = -(-int(now.downtime * 1200) // 10) * 10
    advice.append(f"--downtime-limit {long}, or --on-stall switchover: stop the guest for longer")
    return advice


def _part(part: float) -> str:
    return f"{part:.0%}" if part >= 0.01 else "less than 1%"
