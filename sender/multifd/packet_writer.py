"""Write pages as packets of a multifd channel, from guest memory straight into its socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ...protocol.pages import packets
from ...protocol.pages.packets import Deflater, Heads
from ...protocol.pages.runs import runs
from ...protocol.wire.multifd import Compression, pages_of_packet
from ...transport.settings import ZeroPageDetection
from ..chunks import CHUNK_PAGES, Chunk
from ..page_writer import Numbers, Pages
from ..record_writer import RecordWriter

MAX_RUNS = 16
"""Largest number of runs of pages in a packet that are sent from where they are; with more, copying
them together first is faster."""


class Sends(Protocol):
    """The way to the channel, which is an Outlet."""

    def send(self, *pieces: memoryview) -> None:
        """Send all pieces, of which there are at most IOV_MAX."""


class PacketWriter:
    """A writer of packets to one channel; zero pages may go to `records`, on the main channel.

    `numbers` returns the numbers of this many packets, which no other channel has. `last_syncs` is
    the number of further sync points after the last round.
    """

    def __init__(
        self,
        outlet: Sends,
        records: RecordWriter,
        page_size: int,
        *,
        zero_pages: ZeroPageDetection,
        compression: Compression,
        deflater: Deflater | None,
        numbers: Callable[[int], Sequence[int]],
        last_syncs: int,
    ) -> None:
        self._outlet = outlet
        self._records = records
        self._page_size = page_size
        self._zero_pages = zero_pages
        self._compression = compression
        self._deflater = deflater
        self._numbers = numbers
        self._last_syncs = last_syncs
        self._copies = np.empty((CHUNK_PAGES, page_size), np.uint8)
        self.finds_zero = zero_pages is not ZeroPageDetection.NONE
        self.check = records.check

    def sync(self) -> None:
        """Write a sync point."""
        self._outlet.send(memoryview(packets.sync_packet(self._page_size, *self._numbers(1))))

    def zero(self, chunk: Chunk, indexes: Numbers) -> None:
        """Write these pages of the chunk as zero, in packets or on the main channel."""
        if self._zero_pages is ZeroPageDetection.LEGACY:
            self._records.zero(chunk, indexes)
            return
        block, offsets = chunk.block, chunk.offsets(indexes)
        heads = packets.zero_heads(block.name, block.page_size, offsets, self._compression)
        self._number(heads)
        self._outlet.send(_bytes(heads))

    def plain(self, chunk: Chunk, indexes: Numbers, *, kept: bool) -> Pages | None:
        """Write these pages with their present content, and return copies if they are `kept`."""
        block = chunk.block
        offsets = chunk.offsets(indexes)
        heads = packets.page_heads(block.name, block.page_size, offsets, self._compression)
        self._number(heads)
        numbers = chunk.first + indexes
        # Compression needs memory that does not change under its hands.
        if kept or self._deflater is not None:
            copies = self._copies[: len(indexes)]
            # Without a mode that checks nothing, numpy would copy twice.
            np.take(block.ram, numbers, axis=0, out=copies, mode="clip")
            self._send(heads, copies, np.arange(len(indexes)))
            return copies
        self._send(heads, block.ram, numbers)
        return None

    def end_round(self, number: int, *, last: bool) -> None:
        """Write the sync points of the round's end, then report it."""
        for _ in range(1 + self._last_syncs if last else 1):
            self.sync()
        self._records.end_round(number, last=last)

    def _number(self, heads: Heads) -> None:
        heads["header"]["number"] = self._numbers(len(heads))

    def _send(self, heads: Heads, ram: Pages, numbers: Numbers) -> None:
        """Send packets with these heads, of the pages `ram[numbers]`."""
        most = pages_of_packet(self._page_size)
        parts = [numbers[first : first + most] for first in range(0, len(numbers), most)]
        if self._deflater is None:
            pieces = [_in_memory(ram, part) for part in parts]
        else:
            made = [self._deflater.deflate(ram[part[0] : part[-1] + 1]) for part in parts]
            heads["header"]["payload_size"] = [len(payload) for payload in made]
            pieces = [[memoryview(payload)] for payload in made]
        bare = _bytes(heads)
        size = heads.itemsize
        out = []
        for place, payload in enumerate(pieces):
            out += [bare[place * size : (place + 1) * size], *payload]
        self._outlet.send(*out)


def _bytes(heads: Heads) -> memoryview:
    """Return the bytes of packet heads, which may still be changed."""
    return heads.view(np.uint8).data


def _in_memory(ram: Pages, numbers: Numbers) -> list[memoryview]:
    """Return the pages `ram[numbers]` as pieces of memory: runs in place, or one copy of all."""
    if np.count_nonzero(numbers[1:] - numbers[:-1] != 1) >= MAX_RUNS:
        return [ram[numbers].reshape(-1).data]
    parts = [ram[numbers[first] :][: end - first] for first, end in runs(numbers)]
    return [part.reshape(-1).data for part in parts]
