"""Computes the rate of a transfer from what was transferred so far, as a mean of some seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

SECONDS = 3.0
"""The time over which the recent rate is a mean."""
SHORTEST = 0.2
"""The shortest time, in seconds, from which a rate is computed."""


class Rate:
    """The rate of a transfer, in bytes per second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None

    def note(self, transferred: int) -> None:
        """Record the bytes that were transferred so far."""
        now = self._clock()
        self._seen.append((now, transferred))
        if self._first is None or not transferred:
            # The time before the first byte is not time of the transfer.
            self._first = self._seen[-1]
        while len(self._seen) > 2 and self._seen[1][0] <= now - SECONDS:
            self._seen.popleft()

    @property
    def recent(self) -> float | None:
        """Return the mean of the last SECONDS, or None if too little time has passed."""
        return self._since(self._seen[0]) if self._seen else None

    @property
    def of_all(self) -> float | None:
        """Return the mean since the first byte, or None if too little time has passed."""
        return None if self._first is None else self._since(self._first)

    def _since(self, then: tuple[float, int]) -> float | None:
        (start, before), (now, transferred) = then, self._seen[-1]
        return (transferred - before) / (now - start) if now - start >= SHORTEST else None
