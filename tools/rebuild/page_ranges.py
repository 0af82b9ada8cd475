"""Counts pages of a RAM block, and lists the first ranges of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FIRST_RANGES = 8
"""The number of ranges of pages that are listed."""


class PageRanges:
    """Pages of a block: their number, and their first ranges (offsets; the end is exclusive)."""

    def __init__(self, page_size: int) -> None:
        self.count = 0
        self.first: list[tuple[int, int]] = []
        self.more = False
        self._page_size = page_size

    def add(self, start: int, mask: npt.NDArray[np.bool_]) -> None:
        """Add the pages that are set in `mask` (n,), whose first page is at offset `start`. Calls
        must be in rising order.
        """
        self.count += int(mask.sum())
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
        for begin, end in (edges.reshape(-1, 2) * self._page_size + start).tolist():
            if not self._name(begin, end):
                return

    def add_all(self, start: int, end: int) -> None:
        """Add all pages from offset `start` to `end`. Calls must be in rising order."""
        self.count += (end - start) // self._page_size
        self._name(start, end)

    def _name(self, begin: int, end: int) -> bool:
        """Add a range to the list if it has room; return whether the list may take more."""
        if self.first and self.first[-1][1] == begin and not self.more:
            self.first[-1] = (self.first[-1][0], end)
        elif len(self.first) < FIRST_RANGES:
            self.first.append((begin, end))
        else:
            self.more = True
        return not self.more

    def describe(self) -> str:
        """Return the listed ranges on one line."""
        shown = [
            f"{begin:#x}" if end - begin == self._page_size else f"{begin:#x}-{end:#x}"
            for begin, end in self.first
        ]
        return ", ".join([*shown, "..."] if self.more else shown)

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys pages (their number), first_ranges (each a start and an
        end, offsets in the block).
        """
        return {"pages": self.count, "first_ranges": [list(range_) for range_ in self.first]}
