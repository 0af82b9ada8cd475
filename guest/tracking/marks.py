"""Track writes by the kernel's marks: which pages were written through the guest's own mapping.

What changes the memory in another way is not seen: writes through another mapping or by another
process, and memory that is given back (MADV_REMOVE, a hole punched in its file), which reads as
zero afterwards.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import TrackingError
from .pagemap import MarkReader, Runs
from .tracker import Mask, Written
from .userfaultfd import open_userfaultfd, register


@dataclass(frozen=True)
class WriteMarks:
    """The marks of a guest's writes; they last until `close`, or the end of all who hold them."""

    addresses: tuple[int, ...]
    """Address of each RAM block in the guest's process, in the order of its blocks."""
    userfaultfd: int
    """Descriptor that keeps the marks."""
    pagemap: int
    """Descriptor of the pagemap of the guest's process."""

    def close(self) -> None:
        """Stop marking writes, which then cost no faults any more."""
        os.close(self.userfaultfd)
        os.close(self.pagemap)


def mark_writes(blocks: Sequence[npt.NDArray[np.uint8]]) -> WriteMarks:
    """Mark the writes of this process to arrays, one per RAM block, each a mapping from its start.

    Raises TrackingError with the reason if that is not possible here.
    """
    userfaultfd = open_userfaultfd()
    try:
        for block in blocks:
            if len(block):
                register(userfaultfd, block.ctypes.data, _whole_pages(block.nbytes))
        pagemap = _open_pagemap()
    except BaseException:
        os.close(userfaultfd)
        raise
    marks = WriteMarks(tuple(block.ctypes.data for block in blocks), userfaultfd, pagemap)
    try:
        marked_bytes(marks, [block.nbytes for block in blocks])
    except TrackingError:
        marks.close()
        raise
    return marks


def _open_pagemap() -> int:
    """Return a descriptor of this process's pagemap. Raises TrackingError."""
    path = "/proc/self/pagemap"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TrackingError(f"{path} cannot be read: {error.strerror}") from error


def marked_bytes(marks: WriteMarks, lengths: Sequence[int]) -> int:
    """Return how many bytes of blocks of these lengths are in pages that are marked now.

    This re-arms nothing. Raises TrackingError where the guest's process is gone.
    """
    reader = MarkReader(marks.pagemap)
    total = 0
    for address, length in zip(marks.addresses, lengths, strict=True):
        for runs in reader.runs(address, address + _whole_pages(length), rearm=False):
            total += int((runs[:, 1] - runs[:, 0]).sum())
    return total


class MarkTracker(Written):
    """A tracker of one RAM block by the kernel's marks at `address` of the guest's process."""

    def __init__(self, pagemap: int, address: int, page_count: int, page_size: int) -> None:
        self._reader = MarkReader(pagemap)
        self._address = address
        self._page_size = page_size
        # Pages that were never taken, and those whose mark is gone since a neighbour in the same
        # page of the system was taken.
        self._dirty = np.ones(page_count, np.bool_)

    def chunks_to_take(self, size: int) -> Mask:
        """Return which chunks hold marked pages now, or pages that were never taken."""
        count = len(self._dirty)
        edges = np.arange(0, count, size)
        chunks = np.logical_or.reduceat(self._dirty, edges) if count else self._dirty
        for runs in self._runs(0, count, rearm=False):
            chunks |= _covered(runs, self._page_size * size, len(chunks))
        return chunks

    def take_dirty(self, first: int, end: int) -> Mask:
        """Return the pages written since they were last taken, and re-arm these."""
        for runs in self._runs(first, end, rearm=True):
            start = int(runs[0, 0]) // self._page_size
            stop = min(-(-int(runs[-1, 1]) // self._page_size), len(self._dirty))
            if len(runs) == 1:
                self._dirty[start:stop] = True
                continue
            from_start = runs - np.uint64(start * self._page_size)
            self._dirty[start:stop] |= _covered(from_start, self._page_size, stop - start)
        taken = self._dirty[first:end].copy()
        self._dirty[first:end] = False
        return taken

    def _runs(self, first: int, end: int, *, rearm: bool) -> Sequence[Runs]:
        """Return runs of marked pages, in bytes from the start of the block."""
        start = self._address + first * self._page_size // mmap.PAGESIZE * mmap.PAGESIZE
        stop = self._address + _whole_pages(end * self._page_size)
        found = self._reader.runs(start, stop, rearm=rearm)
        return [runs - np.uint64(self._address) for runs in found]


def _whole_pages(length: int) -> int:
    """Return `length` rounded up to whole pages of the system."""
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE


def _covered(runs: Runs, unit: int, count: int) -> Mask:
    """Return which of `count` units, of `unit` bytes each, runs of bytes touch."""
    first = (runs[:, 0] // np.uint64(unit)).astype(np.intp)
    last = ((runs[:, 1] - np.uint64(1)) // np.uint64(unit)).astype(np.intp)
    steps = np.bincount(first, minlength=count + 1).astype(np.intp)
    ends = np.minimum(last + 1, count)
    steps -= np.bincount(ends, minlength=count + 1)
    return np.asarray(np.cumsum(steps[:count]) > 0)
