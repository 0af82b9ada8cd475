"""Write the pages of a channel into guest memory, which every channel's process maps for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...guest.errors import GuestError
from ...guest.mapping import populate
from ...guest.parts import RamBlock
from ...protocol.pages.runs import runs
from ...transport.spill import FileError
from ..worker import BlockWriter

Offsets = npt.NDArray[np.uint64]
Pages = npt.NDArray[np.uint8]


MAX_RUNS = 16
"""Largest number of runs of pages in a packet that are written to the file one by one."""


class InFile(NamedTuple):
    """A run of pages in the file of a RAM block: `size` bytes at the offset `place`."""

    fd: int
    place: int
    size: int


class Memory:
    """The RAM blocks of the guest; offsets of pages have been checked by the caller.

    Its methods raise GuestError if there is no memory for a page.
    """

    def __init__(self, blocks: Sequence[RamBlock]) -> None:
        self._blocks = [_Block(block) for block in blocks]

    def places(self, index: int, offsets: Offsets) -> list[memoryview]:
        """Return the memory of these pages of a block, in order, to receive their content into.

        Pages that do not exist yet are made here.
        """
        return self._blocks[index].places(offsets)

    def in_file(self, index: int, offsets: Offsets) -> list[InFile]:
        """Return where in the block's file these pages are, in order, if none of them exists yet.

        Then they cost least if they are written there, and none counts as new any more. Return an
        empty list otherwise.
        """
        return self._blocks[index].in_file(offsets)

    def only_map(self, index: int) -> None:
        """Record that a block's file takes no writes."""
        self._blocks[index].fresh.only_mapped()

    def none_left(self, index: int, error: OSError) -> GuestError:
        """Return the error for a block whose pages cannot be made."""
        return self._blocks[index].none_left(error)

    def put(self, index: int, offsets: Offsets, pages: Pages) -> None:
        """Copy pages (n, page size) into a block."""
        self._blocks[index].put(offsets, pages)

    def clear(self, index: int, offsets: Offsets) -> None:
        """Make these pages zero, but write none that is zero already."""
        self._blocks[index].clear(offsets)


class _Block:
    def __init__(self, block: RamBlock) -> None:
        self.name, self._page_size = block.name, block.page_size
        self._writer = BlockWriter(block)
        self.fresh = self._writer.fresh
        self._flat = self._writer.flat
        self._view = self._flat.data
        self._mapped = np.zeros(block.length // block.page_size, np.bool_)

    def places(self, offsets: Offsets) -> list[memoryview]:
        found = [self._pages(offsets, *run) for run in runs(offsets, self._page_size)]
        for first, count in found:
            if not self._mapped[first : first + count].all():
                # At once: a fault for each page takes longer.
                self._map(first * self._page_size, (first + count) * self._page_size)
                self._mapped[first : first + count] = True
            self.fresh.written(slice(first, first + count))
        size, view = self._page_size, self._view
        return [view[first * size : (first + count) * size] for first, count in found]

    def in_file(self, offsets: Offsets) -> list[InFile]:
        found = [self._pages(offsets, *run) for run in runs(offsets, self._page_size)]
        if len(found) > MAX_RUNS or not all(self.fresh.all_fresh(*run) for run in found):
            return []
        for first, count in found:
            self.fresh.written(slice(first, first + count))
        return [InFile(*self.fresh.place(first), count * self._page_size) for first, count in found]

    def put(self, offsets: Offsets, pages: Pages) -> None:
        for start, end in runs(offsets, self._page_size):
            first, _ = self._pages(offsets, start, end)
            try:
                self._writer.put(first, pages[start:end])
            except FileError as error:
                raise GuestError(error.line) from error

    def clear(self, offsets: Offsets) -> None:
        for run in runs(offsets, self._page_size):
            first, count = self._pages(offsets, *run)
            self._writer.fill(slice(first, first + count), 0)

    def _pages(self, offsets: Offsets, start: int, end: int) -> tuple[int, int]:
        """Return the number of the first page of a run of offsets, and how many pages it has."""
        return int(offsets[start]) // self._page_size, end - start

    def _map(self, start: int, end: int) -> None:
        try:
            populate(self._flat, True, start, end)
        except OSError as error:
            raise self.none_left(error) from error

    def none_left(self, error: OSError) -> GuestError:
        return GuestError(f"no memory for block {self.name} (disk full?): {error.strerror}")
