"""Send bytes to a channel within the bandwidth limit, and count them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..transport.channel import Channel
from ..transport.counters import Counters
from ..transport.rate import RateLimiter
from ..transport.shared import wait_readable

OUTLET_COUNTERS = ("transferred", "busy_ns")
"""Counters of a process that sends: bytes handed to its channel, and nanoseconds spent on that."""


class Pace:
    """The bandwidth limit of what a process sends, and its counters.

    `limit` returns the present limit in bytes per second (None: none). `stop_fd` is readable when
    the coordinator stops the round, or is gone.
    """

    def __init__(self, stop_fd: int, counters: Counters, limit: Callable[[], int | None]) -> None:
        self._stop_fd = stop_fd
        self._counters = counters
        self._limit = limit
        self._limiter = RateLimiter(limit(), time.monotonic)

    @contextmanager
    def sending(self, count: int) -> Iterator[None]:
        """Wait until `count` bytes may be sent, and count them once they are.

        Raises EOFError when the coordinator stops the round.
        """
        started = time.monotonic_ns()
        self._limiter.set_limit(self._limit())
        while (delay := self._limiter.delay()) > 0:
            if wait_readable([self._stop_fd], delay):
                # Only the coordinator's death or stop command interrupts a round.
                raise EOFError
            self._limiter.set_limit(self._limit())
        yield
        self._limiter.sent(count)
        self._counters.add("transferred", count)
        self._counters.add("busy_ns", time.monotonic_ns() - started)


class Outlet:
    """The way to one channel; `stop_fd`, `counters` and `limit` are those of its Pace."""

    def __init__(
        self,
        channel: Channel,
        stop_fd: int,
        counters: Counters,
        limit: Callable[[], int | None],
    ) -> None:
        self._channel = channel
        self._stop_fd = stop_fd
        self._pace = Pace(stop_fd, counters, limit)

    def send(self, *pieces: memoryview) -> None:
        """Send all pieces, at most IOV_MAX of them.

        Raises ChannelError, or EOFError when the coordinator stops the round.
        """
        with self._pace.sending(sum(map(len, pieces))):
            self._channel.send(*pieces, stop_fd=self._stop_fd)
