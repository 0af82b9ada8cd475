"""Write the pages of a channel into guest memory, which every channel's process maps for itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...guest.base import RamBlock, populate
from ...guest.errors import GuestError
from ...transport.spill import FileError
from ..worker import BlockWriter

Offsets = npt.NDArray[np.uint64]
Pages = npt.NDArray[np.uint8]


def merged(offsets: Offsets, page_size: int) -> list[tuple[int, int]]:
    """Return the runs of neighbouring pages at these offsets, in order: (start, end) in bytes."""
    if not len(offsets):
        return []
    breaks = np.flatnonzero(offsets[1:] - offsets[:-1] != page_size)
    starts = offsets[np.concatenate(([0], breaks + 1))]
    ends = offsets[np.concatenate((breaks, [len(offsets) - 1]))] + np.uint64(page_size)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


class Memory:
    """The RAM blocks of the guest; offsets of pages have been checked by the caller.

    Its methods raise GuestError if there is no memory for a page.
    """

    def __init__(self, blocks: Sequence[RamBlock]) -> None:
        self._blocks = [_Block(block) for block in blocks]

    def places(self, index: int, offsets: Offsets) -> list[memoryview]:
        """Return the memory of these pages of a block, in order, to receive their content into.

        Pages that do not exist yet are made here. To write them to the block's file would take less
        time in one process, but the channels' processes would wait for each other: the kernel locks
        the file for each write.
        """
        return self._blocks[index].places(offsets)

    def put(self, index: int, offsets: Offsets, pages: Pages) -> None:
        """Copy pages (n, page size) into a block."""
        self._blocks[index].put(offsets, pages)

    def clear(self, index: int, offsets: Offsets) -> None:
        """Make these pages zero, but write none that is zero already."""
        self._blocks[index].clear(offsets)


class _Block:
    def __init__(self, block: RamBlock) -> None:
        self._name, self._page_size = block.name, block.page_size
        self._writer = BlockWriter(block)
        self._flat = self._writer.flat
        self._view = self._flat.data
        self._mapped = np.zeros(block.length // block.page_size, np.bool_)

    def places(self, offsets: Offsets) -> list[memoryview]:
        runs = merged(offsets, self._page_size)
        for start, end in runs:
            first, count = self._pages(start, end)
            if not self._mapped[first : first + count].all():
                # At once: a fault for each page takes longer.
                self._map(start, end)
                self._mapped[first : first + count] = True
            self._writer.note_written(first, count)
        return [self._view[start:end] for start, end in runs]

    def put(self, offsets: Offsets, pages: Pages) -> None:
        done = 0
        for run in merged(offsets, self._page_size):
            first, count = self._pages(*run)
            try:
                self._writer.put(first, pages[done : done + count])
            except FileError as error:
                raise GuestError(error.line) from error
            done += count

    def clear(self, offsets: Offsets) -> None:
        for run in merged(offsets, self._page_size):
            first, count = self._pages(*run)
            self._writer.fill(slice(first, first + count), 0)

    def _pages(self, start: int, end: int) -> tuple[int, int]:
        """Return the number of the first page of a run, and how many there are."""
        return start // self._page_size, (end - start) // self._page_size

    def _map(self, start: int, end: int) -> None:
        try:
            populate(self._flat, True, start, end)
        except OSError as error:
            where = f"bytes {start:#x} to {end:#x} of block {self._name}"
            message = f"no memory for {where} (disk full?): {error.strerror}"
            raise GuestError(message) from error
