"""One direction of a channel as it arrives over the link; no I/O.

Blocks may arrive in any order and more than once, as a connection may break before its blocks are
acknowledged. They leave in order, once each.
"""

from __future__ import annotations

from ..protocol.formats.link import LinkError
from .blocks import BLOCK_SIZE, Arrived
from .parameters import WINDOW


class Incoming:
    """The bytes that arrived over the link and wait for the local connection."""

    def __init__(self) -> None:
        self._waiting: dict[int, Arrived] = {}
        self._held = 0
        self.position = 0
        """Position of the next byte to hand on."""
        self.end: int | None = None
        """Position at which the direction ends, once that is known."""
        self.taken = 0
        """Bytes that the local connection has taken; the end counts as one more."""

    @property
    def held(self) -> int:
        """Return the bytes that wait to be handed on."""
        return self._held

    @property
    def done(self) -> bool:
        """Return whether the local connection has everything, the end included."""
        return self.end is not None and self.taken > self.end

    @property
    def at_end(self) -> bool:
        """Return whether nothing but the end is left to hand on."""
        return self.end is not None and self.position >= self.end

    def put(self, block: Arrived) -> bool:
        """Take a block that arrived; return False if it was there before.

        Raises LinkError if the other end sends more than it may.
        """
        if block.position < self.position or block.position in self._waiting:
            return False
        if self.end is not None and block.position + block.length > self.end:
            raise LinkError("bytes arrive behind the end of a connection")
        self._held += block.length
        if self._held > WINDOW + BLOCK_SIZE:
            raise LinkError("the other end of the link sends more than was acknowledged")
        self._waiting[block.position] = block
        return True

    def put_end(self, position: int) -> None:
        """Record where the direction ends. Raises LinkError if bytes arrived behind that."""
        if self.end not in (None, position) or position < self.position:
            raise LinkError("a connection ends twice, at different places")
        self.end = position

    def end_here(self) -> None:
        """End the direction behind the block that was handed on last; the rest is forgotten."""
        self._waiting.clear()
        self._held = 0
        self.end = self.position

    def next(self) -> Arrived | None:
        """Return the next block in order, or None if it has not arrived."""
        block = self._waiting.pop(self.position, None)
        if block is not None:
            self.position += block.length
            self._held -= block.length
        return block
