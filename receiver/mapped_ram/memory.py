"""Put the pages of a mapped-ram file into guest memory: one process's share of each block."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...guest.parts import RamBlock
from ...protocol.events import RamBlocks
from ...protocol.pages.mapped_pages import Part, past_the_end, read_parts
from ...protocol.pages.runs import runs
from ...transport.channel import Channel, ChannelError
from ...transport.counters import Counters
from ...transport.direct import DIRECT_ALIGNMENT, why_not
from ..worker import BlockWriter

Numbers = npt.NDArray[np.intp]

WINDOW = 1 << 20
"""Bytes of a block that are read at once, and dealt to the processes; a multiple of any page."""
READER_COUNTERS = ("transferred", "normal", "duplicate")


@dataclass(frozen=True)
class SavedFile:
    """An open mapped-ram file, whose stream begins at `start`.

    `pages` is the same file, perhaps opened for direct I/O, and has the pages.
    """

    whole: Channel
    pages: Channel
    start: int

    def read_at(self, place: int, size: int) -> bytes:
        """Return `size` bytes from a position in the stream on, or fewer at the file's end."""
        try:
            return os.pread(self.whole.fileno(), size, self.start + place)
        except OSError as error:
            raise ChannelError(f"{self.whole.name}: {error.strerror}") from error

    def read_pages(self, view: memoryview, place: int) -> int:
        """Fill `view` with pages from a position in the stream on; return how many bytes it got."""
        done, place = 0, self.start + place
        try:
            while done < len(view):
                count = os.preadv(self.pages.fileno(), [view[done:]], place + done)
                done += count
                # Direct I/O cannot go on where the file ended within a page.
                if not count or done % DIRECT_ALIGNMENT:
                    break
        except OSError as error:
            raise ChannelError(f"{self.pages.name}: {why_not(error)}") from error
        return done


class PageReader:
    """The reader of a share of all pages: of every `count` windows of a block the one at `index`.

    `blocks` are the guest's, in the order of the list. `check` raises EOFError when the coordinator
    gives up.
    """

    def __init__(
        self,
        file: SavedFile,
        blocks: tuple[RamBlock, ...],
        *,
        index: int,
        count: int,
        counters: Counters,
        check: Callable[[], None],
    ) -> None:
        self._file = file
        self._writers = [BlockWriter(block) for block in blocks]
        self._index = index
        self._count = count
        self._counters = counters
        self._check = check
        # Direct I/O takes whole pages of memory only.
        self._buffer = np.frombuffer(mmap.mmap(-1, WINDOW), np.uint8)

    def read(self, listed: RamBlocks) -> None:
        """Make this share of memory what the file says.

        Raises StreamError, ChannelError, FileError, and EOFError when the coordinator gives up.
        """
        for part in read_parts(listed, self._file.read_at):
            self._check()
            window = WINDOW // part.page_size
            numbers = np.arange(part.first, part.first + part.count, dtype=np.intp)
            own = numbers // window % self._count == self._index
            there = np.zeros(part.count, np.bool_)
            there[part.numbers - part.first] = True
            self._clear(part, numbers[own & ~there])
            numbers = numbers[own & there]
            for some in np.split(numbers, np.flatnonzero(np.diff(numbers // window)) + 1):
                if len(some):
                    self._check()
                    self._fill(part, some)

    def _clear(self, part: Part, numbers: Numbers) -> None:
        """Make these pages zero; those that were never written are."""
        self._writers[part.index].clear(numbers)
        self._counters.add("duplicate", len(numbers))

    def _fill(self, part: Part, numbers: Numbers) -> None:
        """Read these pages of one window, from the first to the last, and put them into memory."""
        size, first = part.page_size, int(numbers[0])
        wanted = (int(numbers[-1]) - first + 1) * size
        place = part.place + first * size
        if self._file.read_pages(self._buffer.data[:wanted], place) < wanted:
            raise past_the_end(f"a page of block {part.block.name}", place)
        pages = self._buffer[:wanted].reshape(-1, size)
        for start, end in runs(numbers):
            row = int(numbers[start]) - first
            self._writers[part.index].put(int(numbers[start]), pages[row : row + end - start])
        self._counters.add("transferred", wanted)
        self._counters.add("normal", len(numbers))
