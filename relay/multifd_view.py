"""Follow one multifd channel by the heads of its packets; the pages pass unseen. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from ..protocol.events import RamBlocks
from ..protocol.reading.multifd_reader import ChannelReader, Packet

MOST_EARLY = 4 << 20
"""Limit for what is kept of a channel that is ahead of the list of RAM blocks, in bytes."""


class MultifdView:
    """The packets of a channel, whose bytes arrive in pieces of any size."""

    def __init__(self) -> None:
        self._reader = ChannelReader()
        self._rest = b""
        self._skip = 0
        self._knows_blocks = False

    def feed(self, piece: memoryview, listed: RamBlocks | None) -> Iterator[Packet]:
        """Yield the packets whose heads are complete with this piece. Raises StreamError.

        `listed`: the RAM blocks, once the main channel has shown them; until then, what arrives is
        kept.
        """
        passed = min(self._skip, len(piece))
        self._skip -= passed
        piece = piece[passed:]
        if self._rest:
            piece, self._rest = memoryview(self._rest + piece), b""
        at, reader = 0, self._reader
        while at < len(piece):
            if reader.greeting is not None and not self._knows_blocks:
                if listed is None:
                    break
                reader.list_blocks(listed)
                self._knows_blocks = True
            part = piece[at : at + reader.wanted]
            if len(part) < reader.wanted:
                break
            at += len(part)
            if reader.greeting is None:
                reader.greet(part)
                continue
            packet = reader.read_head(part)
            yield packet
            if packet.payload_size:
                reader.passed()
                at += packet.payload_size
        self._skip += max(0, at - len(piece))
        self._rest = bytes(piece[at:])
        if len(self._rest) > MOST_EARLY:
            raise reader.error("the list of RAM blocks does not arrive")
