"""Blocks: the pieces of a channel that travel over the link, each in one zstd frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocol.formats.zstd import compressed_bound

if TYPE_CHECKING:
    from .carrier import Carrier

BLOCK_SIZE = 1 << 20
"""Limit for the bytes of a channel in one block."""
MAX_FRAME = compressed_bound(BLOCK_SIZE)
"""Limit for the bytes of the frame around a block."""
SMALL = BLOCK_SIZE // 4
"""Bytes up to which a block is copied, so that it does not keep a whole buffer."""
_MOST_FREE = 32
"""Limit for the buffers that wait to be used again."""


class Buffers:
    """Buffers of MAX_FRAME bytes that are used again: fresh memory would cost page faults."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []
        self._lent: dict[int, bool] = {}

    def take(self) -> bytearray:
        """Return a buffer with any content."""
        return self._free.pop() if self._free else bytearray(MAX_FRAME)

    def give(self, buffer: bytearray) -> None:
        """Take back a buffer that nobody but a borrower uses any more."""
        if id(buffer) in self._lent:
            self._lent[id(buffer)] = True
        elif len(buffer) == MAX_FRAME and len(self._free) < _MOST_FREE:
            self._free.append(buffer)

    def lend(self, buffer: bytearray) -> None:
        """Keep a buffer from being used again until `end_loan`."""
        self._lent[id(buffer)] = False

    def end_loan(self, buffer: bytearray) -> None:
        """Take back a buffer from its borrower."""
        if self._lent.pop(id(buffer), False):
            self.give(buffer)


@dataclass(eq=False)
class Raw:
    """Bytes as they were read from a local connection: the first `length` of `buffer`.

    `position`: that of the first byte in its direction of the channel. `work`: seconds that reading
    them took.
    """

    channel: int
    position: int
    buffer: bytearray
    length: int
    work: float = 0.0

    @property
    def content(self) -> memoryview:
        """Return the bytes."""
        return memoryview(self.buffer)[: self.length]


@dataclass(eq=False)
class Block:
    """A block that is ready for the link: `pieces` are its record and its frame.

    `carrier`: the connection of the link that has it; None while it waits. `buffer`: what the
    pieces are views of, if that is to be used again.
    """

    channel: int
    position: int
    length: int
    pieces: list[memoryview]
    buffer: bytearray | None = None
    carrier: Carrier | None = None
    sending: bool = False
    """True while a connection of the link sends the block, so `buffer` must not change."""

    @property
    def end(self) -> int:
        """Return the position behind the last byte."""
        return self.position + self.length


@dataclass(eq=False)
class Arrived:
    """A block that arrived: its content, in `buffer` if that is to be used again."""

    position: int
    content: memoryview
    buffer: bytearray | None = None

    @property
    def length(self) -> int:
        """Return the bytes of the channel in it."""
        return len(self.content)
