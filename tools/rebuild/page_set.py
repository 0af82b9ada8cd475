"""A set of pages of one RAM block, which uses one bit of memory per page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..console.failure import CommandError

_STEP = 1 << 20
"""The number of pages that are processed at once; a multiple of 8."""
_FEW = 4
"""The most pages that are added one by one, which for so few is faster than numpy."""


class PageSet:
    """A set of the pages 0 to `count` - 1 of a block; it is empty at first.

    Memory is only used for the parts to which pages are added. Raises CommandError if the machine
    cannot reserve it: the stream is wrong about the size of its RAM, or the guest is huge.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        try:
            self._bits = np.zeros(-(-count // 8), np.uint8)
        except MemoryError:
            message = f"RAM of {count} pages is more than this machine can keep track of"
            raise CommandError(message) from None

    def add(self, numbers: npt.NDArray[np.intp]) -> None:
        """Add the pages with these numbers (n,), in any order; duplicates are allowed."""
        if len(numbers) <= _FEW:
            for number in numbers.tolist():
                self._bits[number >> 3] |= 1 << (number & 7)
            return
        numbers = np.sort(numbers)
        places = numbers >> 3
        bits = np.left_shift(1, numbers & 7).astype(np.uint8)
        firsts = np.flatnonzero(np.diff(places, prepend=-1))
        self._bits[places[firsts]] |= np.bitwise_or.reduceat(bits, firsts)

    def remove(self, start: int, end: int) -> None:
        """Remove the pages from number `start` to `end`, which is exclusive."""
        for at in range(start, end, _STEP):
            until = min(at + _STEP, end)
            first = at >> 3
            kept = self._unpacked(first, -(-until // 8))
            kept[at - first * 8 : until - first * 8] = False
            packed = np.packbits(kept, bitorder="little")
            self._bits[first : first + len(packed)] = packed

    def absent(self) -> Iterator[tuple[int, int, npt.NDArray[np.bool_] | None]]:
        """Yield (start, end, mask) for ranges of pages in rising order; ranges without absent pages
        are skipped.

        `mask` (end - start,) is True for pages that are not in the set; None means that none of
        them is.
        """
        for start in range(0, self.count, _STEP):
            end = min(start + _STEP, self.count)
            packed = self._bits[start >> 3 : -(-end // 8)]
            if not packed.any():
                yield start, end, None
                continue
            mask = ~self._unpacked(start >> 3, -(-end // 8))[: end - start]
            if mask.any():
                yield start, end, mask

    def _unpacked(self, first: int, end: int) -> npt.NDArray[np.bool_]:
        return np.unpackbits(self._bits[first:end], bitorder="little").view(np.bool_)
