"""One direction of a channel on its way to the link; no I/O.

Bytes are read into one open block. Whoever has room for it takes it, full or not, so the blocks
are as large as the link is busy. A block is kept until the other end of the link has handed it on.
"""

from __future__ import annotations

from .blocks import SMALL, Block, Buffers, Raw
from .pace import Pace


class Outgoing:
    """The bytes that were read from a local connection and are not acknowledged yet."""

    def __init__(self, channel: int, buffers: Buffers, pace: Pace) -> None:
        self._channel = channel
        self._pace = pace
        self._buffers = buffers
        self._open: Raw | None = None
        self._kept: dict[int, Block] = {}
        self.position = 0
        """Bytes that were read so far."""
        self.taken = 0
        """Bytes that the other end has handed on; the end of the direction counts as one more."""
        self.left = 0
        """Bytes that may have left over the link."""
        self.ended = False
        """True once the local connection ended in order."""

    @property
    def held(self) -> int:
        """Return the bytes that were read and are not acknowledged."""
        return self.position - min(self.taken, self.position)

    @property
    def done(self) -> bool:
        """Return whether the other end has handed on everything, the end included."""
        return self.ended and self.taken > self.position

    @property
    def waiting(self) -> int:
        """Return the bytes in the open block."""
        return 0 if self._open is None else self._open.length

    @property
    def open_content(self) -> memoryview:
        """Return the bytes in the open block."""
        return memoryview(b"") if self._open is None else self._open.content

    def room(self) -> memoryview:
        """Return where the next bytes are to be read into; empty while the block is full."""
        if self._open is None:
            self._open = Raw(self._channel, self.position, self._buffers.take(), 0)
        return memoryview(self._open.buffer)[self._open.length : self._pace.block]

    def filled(self, count: int, seconds: float) -> None:
        """Record that `count` bytes were read in that many seconds."""
        assert self._open is not None
        self._open.length += count
        self._open.work += seconds
        self.position += count

    def pull(self, least: int = 1) -> Raw | None:
        """Take the open block if it has at least `least` bytes, or none will follow."""
        waiting = self.waiting
        if not waiting or (waiting < least and not self.ended):
            return None
        assert self._open is not None
        raw, self._open = self._open, None
        if raw.length <= SMALL:
            small = bytearray(raw.content)
            self._buffers.give(raw.buffer)
            raw.buffer = small
        return raw

    @property
    def full(self) -> bool:
        """Return whether the open block has no room left."""
        return self.waiting >= self._pace.block

    def keep(self, block: Block) -> None:
        """Keep a block, which is ready for the link, until it is acknowledged."""
        self._kept[block.position] = block
        self.left = max(self.left, block.end)

    def acknowledge(self, position: int) -> None:
        """Record that the other end has handed on everything before `position`."""
        self.taken = max(self.taken, position)
        for block in list(self._kept.values()):
            if block.end > position:
                break
            del self._kept[block.position]
            if block.buffer is not None and not block.sending:
                self._buffers.give(block.buffer)

    def lost(self, carrier: object) -> list[Block]:
        """Return the blocks that a broken connection of the link had, to be sent again."""
        found = [block for block in self._kept.values() if block.carrier is carrier]
        for block in found:
            block.carrier = None
        return found

    def drop(self) -> None:
        """Forget everything: the channel broke."""
        self._kept.clear()
        self._open = None
