"""When to stop the guest: what is still to send, against what the link moves in the downtime limit.

A digest tracker learns of a dirty page only by reading it, so what is dirty *now* is forecast from
the last rounds: the pages that one found had become dirty since the round before read them. A guest
that writes all over dirties half as much in half the time; one that writes the same pages over and
over dirties these in any time. Which of the two it is like, two rounds of different length tell;
before that, the worse is assumed. No clock and no I/O here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHRINKS = 0.99
"""A round must take at most this much of the one before, for rounds to come to an end."""
TELLING = 0.1
"""By how much two rounds must differ in length, as a logarithm, to tell what the guest is like."""
MAX_ROUNDS = 1000
"""A migration that needs more has no end."""


@dataclass(frozen=True)
class Round:
    """One finished pass over guest RAM: its number, bytes found dirty, and seconds taken.

    `sent_bytes`: what the dirty pages came to on the wire; `busy`: seconds of those taken in which
    the channel was sending, or waiting because of the bandwidth limit.
    """

    number: int
    dirty_bytes: int
    sent_bytes: int
    seconds: float
    busy: float


MOMENT = 1e-6
"""Seconds that anything takes at least."""


def _exponent(more: float, longer: float, unknown: float) -> float:
    """The power, from 0 to 1, of how much `longer` it was that `more` was dirtied.

    `unknown`: where the times do not differ enough to tell.
    """
    if abs(math.log(longer)) < TELLING:
        return unknown
    return min(1.0, max(0.0, math.log(more) / math.log(longer)))


class Convergence:
    """Forecasts the next rounds and compares them with the downtime limit."""

    def __init__(self, total: int, downtime_limit: float) -> None:
        """`total` bytes of guest RAM, `downtime_limit` in seconds."""
        self.downtime_limit = downtime_limit
        self.dirty_rate = 0.0
        """Bytes a second that the guest dirties, as the last round found them."""
        self.expected_dirty = float(total)
        """Bytes that the next round will find."""
        self._on_wire = 1.0
        self._scan = 0.0
        self._growth = 0.0
        self._last: Round | None = None
        self._before: Round | None = None

    def round_done(self, done: Round) -> None:
        """Take in a finished round.

        After round 0 nothing is known of the guest's writes, so all of RAM is still expected.
        """
        before, previous, self._last = self._before, self._last, done
        self._before = previous
        self._scan = max(0.0, done.seconds - done.busy)
        if previous is None:
            return
        if done.dirty_bytes:
            # What was zero or hardly changed is likely so again.
            self._on_wire = min(1.0, done.sent_bytes / done.dirty_bytes)
        self.dirty_rate = done.dirty_bytes / max(previous.seconds, MOMENT)
        if before is not None and previous.number > 0:
            self._growth = _exponent(
                max(done.dirty_bytes, 1) / max(previous.dirty_bytes, 1),
                max(previous.seconds, MOMENT) / max(before.seconds, MOMENT),
                self._growth,
            )
        self.expected_dirty = done.dirty_bytes * self._grown(done.seconds, previous.seconds)

    def _grown(self, seconds: float, before: float) -> float:
        """How much of what is dirtied in `before` seconds is dirtied in `seconds`; at most all."""
        ratio = min(1.0, max(seconds, MOMENT) / max(before, MOMENT))
        return float(ratio**self._growth)

    @property
    def knows_guest(self) -> bool:
        """Whether a round has shown by now how fast the guest dirties its RAM."""
        return self._last is not None and self._last.number > 0

    @property
    def expected_sent(self) -> float:
        """Bytes that the next round will put on the wire."""
        return self.expected_dirty * self._on_wire

    def expected_round(self, bandwidth: float) -> float:
        """Seconds that the next round will take: finding what is dirty, and sending it."""
        return self._scan + (self.expected_sent / bandwidth if bandwidth > 0 else 0.0)

    def expected_downtime(self, bandwidth: float) -> float:
        """Seconds that the guest would stand still, at `bandwidth` bytes a second.

        Before the guest is known: the limit.
        """
        if bandwidth <= 0 or not self.knows_guest:
            return self.downtime_limit
        return self.expected_round(bandwidth)

    def should_switch_over(self, bandwidth: float) -> bool:
        """Whether the rest is less than `max_size = bandwidth x downtime limit`."""
        if not self.knows_guest:
            return False
        return self._fits(self.expected_sent, bandwidth)

    def remaining_seconds(self, bandwidth: float) -> float | None:
        """Seconds from the end of the last round to that of the migration; None: it has none.

        Each round sends what the guest dirtied in the one before, until that fits the downtime
        limit and the last one follows.
        """
        if bandwidth <= 0 or not self.knows_guest:
            return None
        assert self._last is not None
        total, sent, before = 0.0, self.expected_sent, self._last.seconds
        for _ in range(MAX_ROUNDS):
            seconds = self._scan + sent / bandwidth
            total += seconds
            if self._fits(sent, bandwidth):
                return total
            if seconds > before * SHRINKS:
                break
            sent *= self._grown(seconds, before)
            before = seconds
        return None

    def _fits(self, size: float, bandwidth: float) -> bool:
        return size < bandwidth * self.downtime_limit or size == 0
