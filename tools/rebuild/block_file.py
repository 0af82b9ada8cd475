"""Builds a RAM block from a stream in a file that is sparse where the block is zero.

The file is also the base that changed pages are decoded against, so memory use does not grow with
the block. It may be an unnamed file in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...protocol import events
from ...protocol.pages import xbzrle, zlib_pages
from ...transport.sparse import write_at
from ..console.failure import CommandError

PAGES = 1024
"""The number of pages that are processed at once."""

Run: TypeAlias = events.PageRun | events.EncodedRun
"""Any run of pages."""


def check_run(run: Run, page_size: int) -> None:
    """Check the encoding of pages in a block that is not extracted. Raises StreamError."""
    for some in _parts(run):
        if isinstance(some, events.XbzrleRun):
            xbzrle.read_run(some, page_size)
        elif isinstance(some, events.CompressedRun):
            zlib_pages.decompress(some, page_size)


def page_flags(count: int) -> npt.NDArray[np.bool_]:
    """Return an array (n,) of False, one for each page; memory is only used for flags that change.

    Raises CommandError if the machine cannot reserve the memory: the stream is wrong about its
    size, or the guest is huge.
    """
    try:
        return np.zeros(count, np.bool_)
    except MemoryError:
        message = f"RAM of {count} pages is more than this machine can keep track of"
        raise CommandError(message) from None


class BlockFile:
    """A RAM block of `length` bytes in pages of `page_size` bytes, in a file.

    `places` has (start in the block, offset in the file) for each part of the block, in order of
    start; the first start is 0. The file must already have its full length and be zero.
    """

    def __init__(
        self, fd: int, length: int, page_size: int, places: Sequence[tuple[int, int]] = ((0, 0),)
    ) -> None:
        self.fd = fd
        self.length = length
        self.page_size = page_size
        self._starts = np.array([start for start, _ in places], np.int64)
        self._shifts = np.array([place - start for start, place in places], np.int64)
        self._written = page_flags(length // page_size)

    @property
    def written(self) -> npt.NDArray[np.bool_]:
        """Return whether each page (n,) arrived with data that is not zero. All other pages are
        zero.
        """
        return self._written

    def take(self, run: Run) -> None:
        """Write a run of pages. Raises StreamError if an encoding is invalid."""
        if isinstance(run, events.PageRun) and run.data is None and run.fill == 0:
            # Pages that were never written are zero already, as a hole in the file.
            self._clear(run.offsets[self._written[self._numbers(run.offsets)]])
            return
        for some in _parts(run):
            if isinstance(some, events.XbzrleRun):
                self._change(some)
            else:
                self._write(some.offsets, self._pages(some))
                self._written[self._numbers(some.offsets)] = True

    def _pages(self, run: Run) -> npt.NDArray[np.uint8]:
        if isinstance(run, events.CompressedRun):
            return zlib_pages.decompress(run, self.page_size)
        assert isinstance(run, events.PageRun)
        if run.data is None:
            return np.full((len(run.offsets), self.page_size), run.fill, np.uint8)
        return run.data

    def _change(self, run: events.XbzrleRun) -> None:
        runs = xbzrle.read_run(run, self.page_size)
        offsets, rows = np.unique(run.offsets, return_inverse=True)
        pages = self._read(offsets)
        xbzrle.apply(pages, rows, run.data, runs)
        self._write(offsets, pages)
        self._written[self._numbers(offsets)] = True

    def _numbers(self, offsets: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        return (offsets // np.uint64(self.page_size)).astype(np.intp)

    def _clear(self, offsets: npt.NDArray[np.uint64]) -> None:
        for start in range(0, len(offsets), PAGES):
            some = offsets[start : start + PAGES]
            self._write(some, np.zeros((len(some), self.page_size), np.uint8))
            self._written[self._numbers(some)] = False

    def _write(self, offsets: npt.NDArray[np.uint64], pages: npt.NDArray[np.uint8]) -> None:
        for place, start, end in self._runs(offsets):
            # Pages that are not contiguous in the stream's buffer are contiguous in the file.
            write_at(self.fd, np.ascontiguousarray(pages[start:end]).reshape(-1).data, place)

    def _read(self, offsets: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        pages = np.empty((len(offsets), self.page_size), np.uint8)
        for place, start, end in self._runs(offsets):
            piece = pages[start:end].reshape(-1).data
            if os.preadv(self.fd, [piece], place) != len(piece):
                raise OSError(f"the output became shorter than {place + len(piece)} bytes")
        return pages

    def _runs(self, offsets: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int, int]]:
        """Yield (offset in the file, first index, end index) for pages that are contiguous in the
        file.
        """
        if not len(offsets):
            return
        signed = offsets.astype(np.int64)
        part = np.searchsorted(self._starts, signed, "right") - 1
        places = signed + self._shifts[part]
        breaks = np.flatnonzero(np.diff(places) != self.page_size) + 1
        for start, end in pairwise([0, *breaks.tolist(), len(places)]):
            yield int(places[start]), start, end


def _parts(run: Run) -> Iterator[Run]:
    """Yield the run in parts of at most PAGES records."""
    count = len(run.offsets)
    if count <= PAGES:
        yield run
        return
    for start in range(0, count, PAGES):
        yield part_of(run, slice(start, start + PAGES))


def part_of(run: Run, some: slice) -> Run:
    """Return a run of only the records in the slice `some`."""
    changes: dict[str, Any] = {
        "offset": run.record_offset(some.start),
        "offsets": run.offsets[some],
        "continued": some.start > 0 or run.continued,
    }
    if isinstance(run, events.EncodedRun):
        changes |= {"starts": run.starts[some], "sizes": run.sizes[some]}
    elif run.data is not None:
        changes["data"] = run.data[some]
    return replace(run, **changes)
