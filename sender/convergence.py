"""When to stop the guest: what is still to send, against what the link moves in the downtime limit.

A digest tracker learns of a dirty page only by reading it, so what is dirty *now* is forecast from
the last round: the pages it found had become dirty since the round before read them. No clock and
no I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """One finished pass over guest RAM: its number, bytes found dirty, and seconds taken.

    `sent_bytes`: what the dirty pages came to on the wire.
    """

    number: int
    dirty_bytes: int
    sent_bytes: int
    seconds: float


class Convergence:
    """Forecasts the next round and compares it with the downtime limit."""

    def __init__(self, total: int, downtime_limit: float) -> None:
        """`total` bytes of guest RAM, `downtime_limit` in seconds."""
        self.downtime_limit = downtime_limit
        self.dirty_rate = 0.0
        """Bytes a second that the guest dirties, as the last round found them."""
        self.expected_dirty = float(total)
        """Bytes that the next round will find."""
        self._on_wire = 1.0
        self._last: Round | None = None

    def round_done(self, done: Round) -> None:
        """Take in a finished round.

        After round 0 nothing is known of the guest's writes, so all of RAM is still expected.
        """
        previous, self._last = self._last, done
        if previous is None:
            return
        if done.dirty_bytes:
            # What was zero or hardly changed is likely so again.
            self._on_wire = min(1.0, done.sent_bytes / done.dirty_bytes)
        self.dirty_rate = done.dirty_bytes / max(previous.seconds, 1e-6)
        self.expected_dirty = min(done.dirty_bytes, self.dirty_rate * done.seconds)

    def expected_downtime(self, bandwidth: float) -> float:
        """Seconds that sending the rest would take at `bandwidth` bytes a second."""
        return self._expected_sent() / bandwidth if bandwidth > 0 else self.downtime_limit

    def should_switch_over(self, bandwidth: float) -> bool:
        """Whether the rest is less than `max_size = bandwidth x downtime limit`."""
        if self._last is None or self._last.number == 0:
            return False
        return self._expected_sent() < bandwidth * self.downtime_limit or self.expected_dirty == 0

    def _expected_sent(self) -> float:
        return self.expected_dirty * self._on_wire
