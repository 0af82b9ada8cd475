"""When to stop the guest: what is still to send, against what the link moves in the downtime limit.

A digest tracker learns of a dirty page only by reading it, so what is dirty *now* is forecast from
the last round: the pages it found had become dirty since the round before read them. No clock and
no I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass

SHRINKS = 0.99
"""A round must take at most this much of the one before, for rounds to come to an end."""
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
        self._last: Round | None = None

    def round_done(self, done: Round) -> None:
        """Take in a finished round.

        After round 0 nothing is known of the guest's writes, so all of RAM is still expected.
        """
        previous, self._last = self._last, done
        self._scan = max(0.0, done.seconds - done.busy)
        if previous is None:
            return
        if done.dirty_bytes:
            # What was zero or hardly changed is likely so again.
            self._on_wire = min(1.0, done.sent_bytes / done.dirty_bytes)
        self.dirty_rate = done.dirty_bytes / max(previous.seconds, 1e-6)
        self.expected_dirty = min(done.dirty_bytes, self.dirty_rate * done.seconds)

    @property
    def knows_guest(self) -> bool:
        """Whether a round has shown by now how fast the guest dirties its RAM."""
        return self._last is not None and self._last.number > 0

    @property
    def expected_sent(self) -> float:
        """Bytes that the next round will put on the wire."""
        return self.expected_dirty * self._on_wire

    @property
    def wire_rate(self) -> float:
        """Bytes a second that a link must take to keep up with the guest."""
        return self.dirty_rate * self._on_wire

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
        seconds, total, sent = self.expected_round(bandwidth), 0.0, self.expected_sent
        for _ in range(MAX_ROUNDS):
            total += seconds
            if self._fits(sent, bandwidth):
                return total
            sent = self.wire_rate * seconds
            before, seconds = seconds, self._scan + sent / bandwidth
            if seconds > before * SHRINKS and not self._fits(sent, bandwidth):
                break
        return None

    def _fits(self, size: float, bandwidth: float) -> bool:
        return size < bandwidth * self.downtime_limit or size == 0
