"""Write pages to their places in a mapped-ram file, from guest memory itself where that is safe."""

from __future__ import annotations

import mmap

import numpy as np

from ...protocol.pages.runs import runs
from ...transport.channel import Channel, ChannelError
from ...transport.direct import why_not
from ...transport.sparse import write_at
from ..chunks import CHUNK_PAGES, Chunk
from ..outlet import Pace
from ..page_writer import Numbers, Pages
from ..sinks import RingSink
from .plan import FilePlan


class FileWriter:
    """A writer of one worker's pages into the file; the round's end is reported on its ring."""

    finds_zero = True

    def __init__(
        self, file: Channel, pace: Pace, sink: RingSink, plan: FilePlan, page_size: int
    ) -> None:
        self._file = file
        self._pace = pace
        self._sink = sink
        self._plan = plan
        self._bitmaps = plan.bitmaps()
        # Direct I/O takes whole pages of memory only.
        copies = mmap.mmap(-1, CHUNK_PAGES * page_size)
        self._copies = np.frombuffer(copies, np.uint8).reshape(-1, page_size)
        self.check = sink.check

    def zero(self, chunk: Chunk, indexes: Numbers) -> None:
        """Record that these pages are not in the file: what is not there reads as zero."""
        self._mark(chunk, indexes, there=False)

    def plain(self, chunk: Chunk, indexes: Numbers, *, kept: bool) -> Pages | None:
        """Write these pages to their places, and return copies if they are `kept`."""
        block, numbers = chunk.block, chunk.first + indexes
        source, rows = block.ram, numbers
        if kept:
            # Law 1: what is remembered must be what is in the file, so both are of the copy.
            source, rows = self._copies[: len(indexes)], np.arange(len(indexes))
            np.take(block.ram, numbers, axis=0, out=source, mode="clip")
        place = self._plan.blocks[block.block.name].place.pages_offset
        with self._pace.sending(len(indexes) * block.page_size):
            for start, end in runs(numbers):
                pages = source[rows[start] : rows[start] + end - start]
                self._write(pages, place + int(numbers[start]) * block.page_size)
        self._mark(chunk, indexes, there=True)
        return source if kept else None

    def end_round(self, number: int, *, last: bool) -> None:
        """Report the end of the round."""
        del last
        self._sink.end_round(number)

    def _write(self, pages: Pages, place: int) -> None:
        try:
            write_at(self._file.fileno(), pages.reshape(-1).data, place)
        except OSError as error:
            raise ChannelError(f"{self._file.name}: {why_not(error)}") from error

    def _mark(self, chunk: Chunk, indexes: Numbers, *, there: bool) -> None:
        """Set or clear the bits of these pages; the bytes they are in belong to this worker."""
        first = chunk.first // 8
        owned = self._bitmaps[chunk.block.block.name][first : first + CHUNK_PAGES // 8]
        bits = np.unpackbits(owned, bitorder="little")
        bits[indexes] = there
        owned[:] = np.packbits(bits, bitorder="little")
