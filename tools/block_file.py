"""A RAM block as a stream builds it, in a file: sparse where it is zero, written run by run.

The file is also what changed pages are decoded against, so memory use does not grow with the block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..protocol import events, xbzrle

PAGES = 1024
"""Pages that are held at once."""


class BlockFile:
    """A block of `length` bytes in pages of `page_size`.

    `places`: where in the file its parts stand: (start in the block, place in the file), in order
    of `start`, the first of which is 0. The file is as long as need be, and zero, already.
    """

    def __init__(
        self, fd: int, length: int, page_size: int, places: Sequence[tuple[int, int]] = ((0, 0),)
    ) -> None:
        self._fd = fd
        self._page_size = page_size
        self._starts = np.array([start for start, _ in places], np.int64)
        self._shifts = np.array([place - start for start, place in places], np.int64)
        self._written = np.zeros(length // page_size, np.bool_)

    def apply(self, run: events.PageRun) -> None:
        """Put a run of pages in its place."""
        if run.data is None and run.fill == 0:
            # What was not written is zero, and a hole in the file.
            self._clear(run.offsets[self._written[self._numbers(run.offsets)]])
            return
        for start in range(0, len(run.offsets), PAGES):
            offsets = run.offsets[start : start + PAGES]
            if run.data is None:
                pages = np.full((len(offsets), self._page_size), run.fill, np.uint8)
            else:
                pages = run.data[start : start + PAGES]
            self._write(offsets, pages)
        self._written[self._numbers(run.offsets)] = True

    def change(self, run: events.XbzrleRun) -> None:
        """Change pages by a run of XBZRLE records. Raises StreamError."""
        for start in range(0, len(run.offsets), PAGES):
            some = _part(run, start, start + PAGES) if len(run.offsets) > PAGES else run
            runs = xbzrle.read_run(some, self._page_size)
            offsets, rows = np.unique(some.offsets, return_inverse=True)
            pages = self._read(offsets)
            xbzrle.apply(pages, rows, some.data, runs)
            self._write(offsets, pages)
            self._written[self._numbers(offsets)] = True

    def _numbers(self, offsets: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        return (offsets // np.uint64(self._page_size)).astype(np.intp)

    def _clear(self, offsets: npt.NDArray[np.uint64]) -> None:
        for start in range(0, len(offsets), PAGES):
            some = offsets[start : start + PAGES]
            self._write(some, np.zeros((len(some), self._page_size), np.uint8))
            self._written[self._numbers(some)] = False

    def _write(self, offsets: npt.NDArray[np.uint64], pages: npt.NDArray[np.uint8]) -> None:
        for place, start, end in self._runs(offsets):
            # Pages that stand apart in the stream are one piece in the file.
            self._write_piece(np.ascontiguousarray(pages[start:end]).reshape(-1).data, place)

    def _write_piece(self, piece: memoryview, place: int) -> None:
        while piece:
            count = os.pwrite(self._fd, piece, place)
            piece, place = piece[count:], place + count

    def _read(self, offsets: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        pages = np.empty((len(offsets), self._page_size), np.uint8)
        for place, start, end in self._runs(offsets):
            piece = pages[start:end].reshape(-1).data
            if os.preadv(self._fd, [piece], place) != len(piece):
                raise OSError(f"the output became shorter than {place + len(piece)} bytes")
        return pages

    def _runs(self, offsets: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int, int]]:
        """(place in the file, first index, end index) of pages that follow each other there."""
        if not len(offsets):
            return
        signed = offsets.astype(np.int64)
        part = np.searchsorted(self._starts, signed, "right") - 1
        places = signed + self._shifts[part]
        breaks = np.flatnonzero(np.diff(places) != self._page_size) + 1
        for start, end in pairwise([0, *breaks.tolist(), len(places)]):
            yield int(places[start]), start, end


def _part(run: events.XbzrleRun, start: int, end: int) -> events.XbzrleRun:
    """Some records of a run."""
    return replace(
        run,
        offset=run.record_offset(start),
        offsets=run.offsets[start:end],
        starts=run.starts[start:end],
        sizes=run.sizes[start:end],
        continued=start > 0 or run.continued,
    )
