"""Take pieces of the stream from a worker: in ring slots, or in a buffer that is sent at once.

A slot holds a whole piece of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from ..protocol.formats.stored_frames import stored
from ..transport.ring import Ring, RingWriter
from ..transport.shared import Readiness

SLOT_PIECE = 1
"""Ring slot kind: a piece of the stream."""
SLOT_END_OF_ROUND = 2
"""Ring slot kind: this worker has no more for the round in the slot's tag."""
SLOT_FLUSHED = 3
"""Ring slot kind, on the coordinator's ring: report when everything before it was sent."""
SLOT_STORED = 4
"""Ring slot kind: a piece of the stream that is sent stored in a zstd frame."""


def pieces_on_wire(view: memoryview, kind: int) -> list[memoryview]:
    """Return the bytes of a slot of this kind as they are sent, in pieces."""
    return stored(view) if kind == SLOT_STORED else [view]


class Sink(Protocol):
    """A taker of pieces of the stream, in slots to fill and send; one is open at a time."""

    def acquire(self) -> memoryview:
        """Return an empty slot. Raises EOFError when the coordinator stops the round."""

    def publish(self, length: int) -> None:
        """Send the first `length` bytes of the open slot."""

    def end_round(self, number: int) -> None:
        """Report that everything of this round was published."""

    def check(self) -> None:
        """Raise EOFError when the coordinator stops the round."""


class RingSink:
    """Sink of a ring, which the transport process empties."""

    def __init__(self, ring: Ring, connection: Connection) -> None:
        self._writer = RingWriter(ring)
        self._commands = Readiness(connection.fileno())
        self._free_or_command = Readiness(self._writer.free_fd, connection.fileno())

    def acquire(self) -> memoryview:
        """Wait for an empty slot of the ring and return it.

        Raises EOFError when the round is stopped.
        """
        while (view := self._writer.try_acquire()) is None:
            self._free_or_command.ready()
            self.check()
        return view

    def publish(self, length: int) -> None:
        """Publish the first `length` bytes of the slot to the transport process."""
        self._writer.publish(length, SLOT_PIECE, 0)

    def publish_stored(self, length: int) -> None:
        """Publish the first `length` bytes to the transport process, to be sent in a frame."""
        self._writer.publish(length, SLOT_STORED, 0)

    def end_round(self, number: int) -> None:
        """Publish a slot that ends this worker's part of the round."""
        self.acquire()
        self._writer.publish(0, SLOT_END_OF_ROUND, number)

    def check(self) -> None:
        """Raise EOFError when the coordinator stops the round."""
        if self._commands.now():
            raise EOFError


class DirectSink:
    """One buffer of the transport process itself, sent as soon as it is published.

    `send` is called with the bytes and the kind of slot that they would be in; `ended` is called
    with the number of a finished round.
    """

    def __init__(
        self,
        size: int,
        connection: Connection,
        send: Callable[[memoryview, int], None],
        ended: Callable[[int], None],
    ) -> None:
        self._buffer = memoryview(bytearray(size))
        self._commands = Readiness(connection.fileno())
        self._send = send
        self.end_round = ended

    def send(self, content: memoryview) -> None:
        """Send bytes that are not in the buffer."""
        self._send(content, SLOT_PIECE)

    def acquire(self) -> memoryview:
        """Return the buffer."""
        return self._buffer

    def publish(self, length: int) -> None:
        """Send the first `length` bytes of the buffer."""
        self._send(self._buffer[:length], SLOT_PIECE)

    def publish_stored(self, length: int) -> None:
        """Send the first `length` bytes of the buffer in a frame."""
        self._send(self._buffer[:length], SLOT_STORED)

    def check(self) -> None:
        """Raise EOFError when the coordinator stops the round."""
        if self._commands.now():
            raise EOFError
