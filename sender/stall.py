"""A migration that no longer gets nearer to its end: notice it, say why, and what would help.

No clock and no I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..guest.sizes import format_size
from .convergence import MOMENT, Round

ROUNDS = 3
"""Rounds in succession that did not shrink."""
PERIOD = 1.0
"""Seconds that these must take together."""
SHRINKS = 0.95
"""A round shrinks that sends at most this much of the one before."""

WORTH = 0.8
"""An encoding is worth naming that leaves at most this much of the pages sampled."""
LIMITED = 0.8
"""From this much of the bandwidth limit on, that limit is what the link is slowed by."""
MISSING = 0.3
"""From this much of the dirty pages on without a line, the XBZRLE cache is too small."""


@dataclass(frozen=True)
class Stall:
    """`reason`: one line; `advice`: what would help, a line each, best first."""

    reason: str
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Situation:
    """What is known when a migration stalls. Sizes in bytes, rates in bytes a second.

    `left`: what each round finds and sends; `max_bandwidth` 0: no limit. `delta`, `zstd`: what part
    of the pages sampled XBZRLE or zstd would leave; None where it is on already, or not known.
    `cache_miss_rate`: of the XBZRLE cache, 0 where it is off; `can_slow`: the guest is not slowed
    down, and could be.
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
    """Notices rounds that no longer shrink."""

    def __init__(self) -> None:
        self._before: int | None = None
        self._rounds = 0
        self._seconds = 0.0

    @property
    def stalled(self) -> bool:
        """Whether the last rounds did not shrink."""
        return self._rounds >= ROUNDS and self._seconds >= PERIOD

    def round_done(self, done: Round) -> None:
        """Take in a finished round."""
        before, self._before = self._before, done.sent_bytes
        if before is None or done.sent_bytes <= before * SHRINKS:
            self.begin_again()
            return
        self._rounds += 1
        self._seconds += done.seconds

    def begin_again(self) -> None:
        """Something has changed: what the rounds before were like tells nothing any more."""
        self._rounds, self._seconds = 0, 0.0


def explain(now: Situation) -> Stall:
    """Put into words what the situation is."""
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
    # With some room: the next round is not quite like the last.
    long = -(-int(now.downtime * 1200) // 10) * 10
    advice.append(f"--downtime-limit {long}, or --on-stall switchover: stop the guest for longer")
    return advice


def _part(part: float) -> str:
    return f"{part:.0%}" if part >= 0.01 else "less than 1%"
