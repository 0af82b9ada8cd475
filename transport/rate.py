"""Limit the rate of sending in windows of 100 ms, like QEMU."""

from __future__ import annotations

from collections.abc import Callable

WINDOW = 0.1


class RateLimiter:
    """A limit of bandwidth, which says how long to wait before the next piece may be sent.

    Within a window, sending is free until the window's share is used up; the excess of a piece is
    taken from the windows after it.
    """

    def __init__(self, limit: int | None, clock: Callable[[], float]) -> None:
        """Take `limit` in bytes per second (None: no limit) and `clock` in seconds."""
        self._limit = limit
        self._clock = clock
        self._window_start = clock()
        self._used = 0.0

    def set_limit(self, limit: int | None) -> None:
        """Set a new limit, from now on."""
        if limit != self._limit:
            self._limit = limit
            self._window_start = self._clock()
            self._used = 0.0

    def sent(self, count: int) -> None:
        """Note that `count` bytes were sent."""
        self._used += count

    def delay(self) -> float:
        """Return the seconds until the next piece may be sent; 0 if it may be sent now."""
        if self._limit is None:
            return 0.0
        share = self._limit * WINDOW
        now = self._clock()
        windows = int((now - self._window_start) / WINDOW)
        if windows:
            self._window_start += windows * WINDOW
            self._used = max(0.0, self._used - windows * share)
        if self._used < share:
            return 0.0
        # A wait too short for the clock to advance would be requested again.
        return max(self._window_start + WINDOW - now, 1e-3)
