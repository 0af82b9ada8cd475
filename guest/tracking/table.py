"""Track dirty pages by a table in shared memory, which is filled while no worker takes."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from .tracker import Mask, Written


class TableTracker(Written):
    """A tracker of one RAM block by its part of the table: one byte a page, 1 where it is dirty.

    Between the rounds somebody else adds what was written, and has re-armed its mark by then. So
    whoever takes a page finds its mark re-armed already, before it looks at the page.
    """

    def __init__(self, table: Mask) -> None:
        self._table = table

    def chunks_to_take(self, size: int) -> Mask:
        """Return which chunks have dirty pages."""
        count = len(self._table)
        if not count:
            return self._table
        return np.asarray(np.logical_or.reduceat(self._table, np.arange(0, count, size)))

    def take_dirty(self, first: int, end: int) -> Mask:
        """Return the pages that are dirty by the table, and remove them from it."""
        taken = self._table[first:end].copy()
        self._table[first:end] = False
        return taken


def map_table(fd: int, counts: Sequence[int]) -> list[Mask]:
    """Return the parts of the table in the file `fd` that belong to blocks of `counts` pages."""
    whole = np.frombuffer(mmap.mmap(fd, max(sum(counts), 1)), np.bool_)
    ends = np.cumsum(counts)
    return [whole[end - count : end] for count, end in zip(counts, ends, strict=True)]
