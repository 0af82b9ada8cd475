"""Put pages into RAM that holds nothing yet, by writes to its file.

A page that does not exist yet costs least this way: the first write through a mapping is a fault,
for which the kernel fills the page with zeros, only to have it overwritten.
"""

from __future__ import annotations

import errno
import os

import numpy as np
import numpy.typing as npt

from ..guest.parts import RamBlock
from ..transport.pieces import drop_front
from ..transport.sparse import data_parts
from ..transport.spill import FileError

PIECES = 1024
"""Limit for the pieces of one write (IOV_MAX)."""


class FreshPages:
    """The record of which pages of a RAM block were never written, and the writer of these.

    Other processes may have written some of them meanwhile, so the record says what is fast, and
    not what a page holds.
    """

    def __init__(self, block: RamBlock) -> None:
        self._block = block
        # Zeros take no memory until they are looked at, however much RAM a stream claims to have.
        self._written = np.zeros(-(-block.length // block.page_size), np.bool_)
        first = block.file_offset
        for start, end in data_parts(block.fd, first, first + block.length):
            size = block.page_size
            self._written[(start - first) // size : -(-(end - first) // size)] = True

    def existing(self, numbers: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Return those of some pages that were written."""
        return numbers[self._written[numbers]]

    def all_fresh(self, first: int, count: int) -> bool:
        """Return whether none of `count` pages from page `first` on was ever written."""
        return not self._written[first : first + count].any()

    def place(self, first: int) -> tuple[int, int]:
        """Return the file of the block, and the offset in it of page `first`."""
        return self._block.fd, self._block.file_offset + first * self._block.page_size

    def only_mapped(self) -> None:
        """Record that the file takes no writes, as one of huge pages: no page counts as fresh."""
        self._written[:] = True

    def written(self, target: slice | npt.NDArray[np.intp]) -> None:
        """Record that these pages, by their numbers, were written in another way."""
        self._written[target] = True

    def write(self, first: int, pages: list[memoryview]) -> bool:
        """Write pieces of whole pages from page `first` on; False if the file takes no writes.

        Raises FileError, for example where the disk is full.
        """
        size, left = self._block.page_size, pages
        fd, start = self.place(first)
        place = start
        try:
            while left:
                count = os.pwritev(fd, left[:PIECES], place)
                place += count
                drop_front(left, count)
        except OSError as error:
            if error.errno == errno.EINVAL:
                self.only_mapped()
                return False
            raise FileError(error.errno, error.strerror, f"RAM block {self._block.name}") from error
        self.written(slice(first, first + (place - start) // size))
        return True
