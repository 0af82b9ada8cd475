"""Read the channel into buffers, until the stream ends or the coordinator gives up."""

from __future__ import annotations

from multiprocessing.connection import Connection

from ..transport.channel import Channel
from ..transport.counters import Counters
from ..transport.shared import Readiness
from .end_of_stream import EndOfStream
from .stored import StoredFrame

RECEIVE_BYTES = 2 << 20
"""Largest number of bytes read into a slot at a time."""


class Input:
    """The bytes of one channel, which are counted as `transferred`.

    Reading raises EOFError when the coordinator sends a command, or is gone.
    """

    def __init__(
        self, connection: Connection, channel: Channel, counters: Counters, end: EndOfStream
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._counters = counters
        self._end = end
        self._readiness = Readiness(channel.fileno(), connection.fileno())

    @property
    def waits(self) -> bool:
        """Return whether there is something to read, or a command."""
        return self._readiness.now()

    def fill(self, view: memoryview, wanted: int = 1) -> int:
        """Read what the channel has, but wait for `wanted` bytes; return how many were read."""
        used, end = 0, min(len(view), RECEIVE_BYTES)
        while used < end:
            ready = self._readiness.ready(0.0)
            if not ready and used < wanted:
                ready = self._end.wait(self._readiness.ready)
            if self._connection.fileno() in ready:
                raise EOFError
            if not ready:
                break
            count = self._channel.recv_into(view[used:end])
            if count == 0:
                break
            used += count
            self._counters.add("transferred", count)
        return used

    def fill_frame(self, frame: StoredFrame) -> None:
        """Read the whole frame, as long as it arrives and has the expected layout."""
        while frame.awaited:
            if self._connection.fileno() in self._readiness.ready(None):
                raise EOFError
            count = self._channel.recv_into(*frame.missing)
            if count == 0:
                return
            frame.filled(count)
            self._counters.add("transferred", count)
