"""Write pages as records of the stream: the pieces of the `ram` section that a sink sends."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..protocol.pages import records
from ..protocol.wire.ram import RECORD_HEADER_SIZE, end_of_ram
from ..protocol.wire.stream import section_footer, section_part
from .chunks import CHUNK_PAGES, Chunk
from .page_writer import Numbers, Pages
from .sinks import Sink


def slot_size(page_size: int) -> int:
    """Return the bytes of a slot: a chunk of plain pages, its names and the section around it."""
    return CHUNK_PAGES * (page_size + RECORD_HEADER_SIZE) + 4096


class RecordWriter:
    """A writer of page records; each slot becomes a whole SECTION_PART with this section id.

    Without an id, a slot has records alone: whoever sends them puts the section around them. A slot
    grows until the next chunk does not fit.
    """

    finds_zero = True

    def __init__(self, sink: Sink, section_id: int | None) -> None:
        self._sink = sink
        self._head, self._tail = b"", b""
        if section_id is not None:
            self._head = section_part(section_id)
            self._tail = end_of_ram() + section_footer(section_id)
        self._view: npt.NDArray[np.uint8] | None = None
        self._used = 0
        self.check = sink.check

    def zero(self, chunk: Chunk, indexes: Numbers) -> None:
        """Write ZERO records for these pages of the chunk."""
        name = chunk.block.name
        out = self.room(records.zero_size(len(indexes), name))
        self.used(records.pack_zero(out, name, chunk.offsets(indexes)))

    def plain(self, chunk: Chunk, indexes: Numbers, *, kept: bool) -> Pages | None:
        """Write PAGE records for these pages, and return the pages as the records hold them."""
        del kept
        block, count = chunk.block, len(indexes)
        size = records.plain_size(count, block.page_size, block.name)
        out, offsets = self.room(size), chunk.offsets(indexes)
        if indexes[-1] - indexes[0] == count - 1:
            start = chunk.first + int(indexes[0])
            records.pack_plain(out, block.name, offsets, block.ram[start : start + count])
        else:
            records.pack_plain_gather(out, block.name, offsets, block.ram, indexes + chunk.first)
        self.used(size)
        stride = block.page_size + RECORD_HEADER_SIZE
        first = size - count * stride + RECORD_HEADER_SIZE
        return records.plain_pages(out, first, count, block.page_size)

    def copies(self, chunk: Chunk, indexes: Numbers, copies: Pages) -> None:
        """Write PAGE records for these pages with the content of `copies` (n, page_size)."""
        name = chunk.block.name
        out = self.room(records.plain_size(len(copies), copies.shape[1], name))
        self.used(records.pack_plain(out, name, chunk.offsets(indexes), copies))

    def room(self, size: int) -> npt.NDArray[np.uint8]:
        """Return an array of at least `size` bytes to write into; call `used` afterwards."""
        view = self._view
        if view is not None and self._used + size + len(self._tail) > len(view):
            self._flush()
            view = None
        if view is None:
            view = self._view = np.frombuffer(self._sink.acquire(), np.uint8)
            self._used = 0
            self._put(self._head)
        return view[self._used :]

    def used(self, size: int) -> None:
        """Record that `size` bytes of the last `room` now hold records."""
        self._used += size

    def end_round(self, number: int, *, last: bool) -> None:
        """Send the slot that is open, and report the end of the round."""
        del last
        self._flush()
        self._sink.end_round(number)

    def _flush(self) -> None:
        """Close the part and publish the slot, if one is open."""
        if self._view is None:
            return
        self._put(self._tail)
        self._view = None
        self._sink.publish(self._used)

    def _put(self, data: bytes) -> None:
        assert self._view is not None
        self._view[self._used : self._used + len(data)] = np.frombuffer(data, np.uint8)
        self._used += len(data)
