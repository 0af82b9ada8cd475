"""Rate limiting in windows of 100 ms, as QEMU does it."""

from __future__ import annotations

from collections.abc import Callable

WINDOW = 0.1


class RateLimiter:
    """Says how long to wait before the next piece may be sent.

    Within a window, sending is free until the window's share is used up; what a piece went over
    is taken from the windows after it.
    """

    def __init__(self, limit: int | None, clock: Callable[[], float]) -> None:
        """`limit` in bytes a second (None: no limit); `clock` in seconds."""
        self._limit = limit
        self._clock = clock
        self._window_start = clock()
        self._used = 0.0

    def set_limit(self, limit: int | None) -> None:
        """A new limit, from now on."""
        if limit != self._limit:
            self._limit = limit
            self._window_start = self._clock()
            self._used = 0.0

    def sent(self, count: int) -> None:
        """`count` bytes were sent."""
        self._used += count

    def delay(self) -> float:
        """Seconds until the next piece may be sent; 0: now."""
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
        # Not less than a clock can tell: a wait that does not move it would be asked for again.
        return max(self._window_start + WINDOW - now, 1e-3)
