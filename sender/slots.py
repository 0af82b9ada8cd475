"""Where pages are laid out for the wire: in ring slots, or in a buffer that is sent at once.

A slot holds a whole piece of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from ..transport.ring import Ring, RingWriter
from ..transport.shared import Readiness

SLOT_PIECE = 1
"""Ring slot kind: a piece of the stream."""
SLOT_END_OF_ROUND = 2
"""Ring slot kind: this worker has no more for the round in the slot's tag."""
SLOT_FLUSHED = 3
"""Ring slot kind, on the coordinator's ring: say when everything before it was sent."""
SLOT_STORED = 4
"""Ring slot kind: a piece of the stream that leaves stored in a zstd frame, see protocol.zstd."""


class Slots(Protocol):
    """One slot is open at a time."""

    def acquire(self) -> memoryview:
        """An empty slot. Raises EOFError when the coordinator wants no more of this round."""

    def publish(self, length: int) -> None:
        """Its first `length` bytes may go."""

    def end_round(self, number: int) -> None:
        """Everything of this round was published."""

    def check(self) -> None:
        """Raises EOFError when the coordinator wants no more of this round."""


class RingSlots:
    """Slots of a ring, taken by the transport process."""

    def __init__(self, ring: Ring, connection: Connection) -> None:
        self._writer = RingWriter(ring)
        self._commands = Readiness(connection.fileno())
        self._free_or_command = Readiness(self._writer.free_fd, connection.fileno())

    def acquire(self) -> memoryview:
        """See Slots."""
        while (view := self._writer.try_acquire()) is None:
            self._free_or_command.ready()
            self.check()
        return view

    def publish(self, length: int, *, stored: bool = False) -> None:
        """See Slots; `stored`: in a zstd frame."""
        self._writer.publish(length, SLOT_STORED if stored else SLOT_PIECE, 0)

    def end_round(self, number: int) -> None:
        """See Slots."""
        self.acquire()
        self._writer.publish(0, SLOT_END_OF_ROUND, number)

    def check(self) -> None:
        """See Slots."""
        if self._commands.now():
            raise EOFError


class DirectSlots:
    """One buffer of the transport process itself: `send` takes bytes, `ended` the round.

    `send` is also told whether they leave stored in a zstd frame.
    """

    def __init__(
        self,
        size: int,
        connection: Connection,
        send: Callable[[memoryview, bool], None],
        ended: Callable[[int], None],
    ) -> None:
        self._buffer = memoryview(bytearray(size))
        self._commands = Readiness(connection.fileno())
        self._send = send
        self.end_round = ended

    def send(self, content: memoryview) -> None:
        """Send what stands elsewhere."""
        self._send(content, False)

    def acquire(self) -> memoryview:
        """See Slots."""
        return self._buffer

    def publish(self, length: int, *, stored: bool = False) -> None:
        """See Slots; `stored`: in a zstd frame."""
        self._send(self._buffer[:length], stored)

    def check(self) -> None:
        """See Slots."""
        if self._commands.now():
            raise EOFError
