"""Decide when to stop the guest, from what is left to send and what the link moves in the downtime.

A tracker by the kernel's marks counts what is dirty now. A digest tracker finds a dirty page only
by reading it, so what is dirty *now* is forecast from the last rounds: the pages that a round finds
became dirty since the round before read them. A guest that writes all over its RAM dirties half as
many pages in half the time; one that writes the same pages over and over dirties them in any time.
Two rounds of different length show which kind the guest is; before that, the worse kind is assumed.
The limit of bandwidth holds for the rounds of the running guest, not for the last one. So what is
said of the downtime is reckoned with what the link then bears. This module reads no clock and does
no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHRINKS = 0.99
"""A round must take at most this part of the time of the one before, or the rounds never end."""
TELLING = 0.1
"""Smallest difference in length of two rounds, as a logarithm, that characterizes the guest."""
MAX_ROUNDS = 1000
"""Number of forecast rounds after which a migration counts as endless."""


@dataclass(frozen=True)
class Round:
    """The results of one finished pass over guest RAM: bytes found dirty, and seconds taken.

    `sent_bytes` is the size of the dirty pages on the wire. `busy` is the part of `seconds` in
    which the channel was sending, or waiting because of the bandwidth limit. `left` is what is
    dirty at its end, where the tracker can count that.
    """

    number: int
    dirty_bytes: int
    sent_bytes: int
    seconds: float
    busy: float
    left: int | None = None


MOMENT = 1e-6
"""Shortest time, in seconds, that is used as a divisor."""


def _exponent(more: float, longer: float, unknown: float) -> float:
    """Return the power of the ratio `longer` that gives the ratio `more`, limited to 0 to 1.

    Return `unknown` where the two times are too similar to say.
    """
    if abs(math.log(longer)) < TELLING:
        return unknown
    return min(1.0, max(0.0, math.log(more) / math.log(longer)))


class Convergence:
    """A forecast of the next rounds, compared with the downtime limit."""

    def __init__(self, total: int, downtime_limit: float) -> None:
        """Start with `total` bytes of guest RAM and a `downtime_limit` in seconds."""
        self.downtime_limit = downtime_limit
        self.dirty_rate = 0.0
        """Bytes per second that the guest dirties, as measured by the last round."""
        self.expected_dirty = float(total)
        """Bytes that the next round is expected to find."""
        self._on_wire = 1.0
        self._scan = 0.0
        self._growth = 0.0
        self._last: Round | None = None
        self._before: Round | None = None

    def round_done(self, done: Round) -> None:
        """Record the results of a finished round.

        Round 0 says nothing about the guest's writes, so all of RAM is still expected after it,
        unless the tracker can count.
        """
        before, previous, self._last = self._before, self._last, done
        self._before = previous
        self._scan = max(0.0, done.seconds - done.busy)
        if previous is not None:
            self._learn(done, previous, before)
        if done.left is not None:
            self._count(done, done.left, previous)

    def _learn(self, done: Round, previous: Round, before: Round | None) -> None:
        """Learn about the guest from what rounds found, which it dirtied during the one before."""
        if done.dirty_bytes:
            # Pages that were zero or little changed are likely to be so again.
            self._on_wire = min(1.0, done.sent_bytes / done.dirty_bytes)
        self.dirty_rate = done.dirty_bytes / max(previous.seconds, MOMENT)
        if before is not None and previous.number > 0:
            self._growth = _exponent(
                max(done.dirty_bytes, 1) / max(previous.dirty_bytes, 1),
                max(previous.seconds, MOMENT) / max(before.seconds, MOMENT),
                self._growth,
            )
        self.expected_dirty = done.dirty_bytes * self._grown(done.seconds, previous.seconds)

    def _count(self, done: Round, left: int, previous: Round | None) -> None:
        """Learn from what is dirty now, which the guest dirtied during this round."""
        self.expected_dirty = left
        self.dirty_rate = left / max(done.seconds, MOMENT)
        # Only marked pages will be scanned.
        self._scan *= min(1.0, left / max(done.dirty_bytes, 1))
        if previous is not None and previous.left is not None:
            self._growth = _exponent(
                max(left, 1) / max(previous.left, 1),
                max(done.seconds, MOMENT) / max(previous.seconds, MOMENT),
                self._growth,
            )

    def _grown(self, seconds: float, before: float) -> float:
        """Return what part of the RAM dirtied in `before` seconds is dirtied in `seconds`.

        The result is at most 1.
        """
        ratio = min(1.0, max(seconds, MOMENT) / max(before, MOMENT))
        return float(ratio**self._growth)

    @property
    def knows_guest(self) -> bool:
        """Return whether a round has shown yet how fast the guest dirties its RAM."""
        last = self._last
        return last is not None and (last.number > 0 or last.left is not None)

    @property
    def expected_sent(self) -> float:
        """Return the bytes that the next round is expected to send."""
        return self.expected_dirty * self._on_wire

    def expected_round(self, bandwidth: float) -> float:
        """Return the seconds that the next round is expected to take, scanning and sending."""
        return self._scan + (self.expected_sent / bandwidth if bandwidth > 0 else 0.0)

    def expected_downtime(self, bandwidth: float) -> float:
        """Return the expected downtime in seconds, at `bandwidth` bytes per second.

        Return the downtime limit until a round has shown how fast the guest dirties its RAM.
        """
        if bandwidth <= 0 or not self.knows_guest:
            return self.downtime_limit
        return self.expected_round(bandwidth)

    def should_switch_over(self, bandwidth: float) -> bool:
        """Return whether the rest is smaller than `max_size = bandwidth x downtime limit`."""
        if not self.knows_guest:
            return False
        return self._fits(self.expected_sent, bandwidth)

    def remaining_seconds(self, bandwidth: float, at_last: float) -> float | None:
        """Return the seconds from the end of the last round to the end of the migration.

        Return None if the migration would not end. Each round sends what the guest dirtied during
        the one before, at `bandwidth`, until that fits the downtime limit and the last round
        follows, in which the link moves `at_last` bytes per second.
        """
        if bandwidth <= 0 or at_last <= 0 or not self.knows_guest:
            return None
        assert self._last is not None
        total, sent, before = 0.0, self.expected_sent, self._last.seconds
        for _ in range(MAX_ROUNDS):
            if self._fits(sent, at_last):
                return total + self._scan + sent / at_last
            seconds = self._scan + sent / bandwidth
            total += seconds
            if seconds > before * SHRINKS:
                break
            sent *= self._grown(seconds, before)
            before = seconds
        return None

    def _fits(self, size: float, bandwidth: float) -> bool:
        return size < bandwidth * self.downtime_limit or size == 0
