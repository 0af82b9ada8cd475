"""Measure the times of a migration, and the bandwidth of the last window."""

from __future__ import annotations

import time
from collections.abc import Callable


class Meter:
    """A clock with named spans, and a bandwidth measured while the channel was busy.

    Bandwidth counts only the time spent sending: a link that idles while pages are being scanned is
    not a slow link.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spans: dict[str, tuple[float, float | None]] = {}
        self._last = (clock(), 0, 0, 0)
        self.bandwidth = 0.0
        """Bytes per second while sending, in the last window that sent anything."""
        self.mbps = 0.0
        """Megabits per second of the last window, idle time included."""
        self.pages_per_second = 0.0
        """Pages per second of the last window, idle time included."""

    def begin(self, span: str) -> None:
        """Start the span of that name."""
        self._spans[span] = (self._clock(), None)

    def end(self, span: str) -> None:
        """End the span, if it was started and not ended yet."""
        start, end = self._spans.get(span, (0.0, 0.0))
        if end is None:
            self._spans[span] = (start, self._clock())

    def milliseconds(self, span: str) -> int:
        """Return the length of a span, up to now if it has not ended; 0 if it never started."""
        if span not in self._spans:
            return 0
        start, end = self._spans[span]
        return round(((self._clock() if end is None else end) - start) * 1000)

    def window(self, transferred: int, busy_ns: int, pages: int = 0) -> None:
        """Close a window, given bytes sent, nanoseconds spent sending and pages sent so far."""
        now = self._clock()
        then, sent, busy, pages_before = self._last
        if now <= then:
            return
        self._last = (now, transferred, busy_ns, pages)
        self.pages_per_second = (pages - pages_before) / (now - then)
        self.mbps = (transferred - sent) * 8 / (now - then) / 1e6
        if busy_ns > busy and transferred > sent:
            self.bandwidth = (transferred - sent) / (busy_ns - busy) * 1e9
