"""Define the interface by which a worker writes the pages that it has found dirty.

The worker decides which pages are sent. A writer lays them out as records of the stream, or as
packets of a multifd channel.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .chunks import Chunk

Numbers = npt.NDArray[np.intp]
Pages = npt.NDArray[np.uint8]


class PageWriter(Protocol):
    """A writer of one worker's pages; within a round, no page is written twice."""

    finds_zero: bool
    """True if zero pages are to be looked for."""

    def zero(self, chunk: Chunk, indexes: Numbers) -> None:
        """Write these pages of the chunk, at least one, as zero."""

    def plain(self, chunk: Chunk, indexes: Numbers, *, kept: bool) -> Pages | None:
        """Write these pages of the chunk, at least one, with their present content.

        If `kept`, return the pages (n, page_size) as they were written, until the next call; the
        guest may have changed its memory since (law 1). Otherwise return None or the same.
        """

    def check(self) -> None:
        """Raise EOFError when the coordinator stops the round."""

    def end_round(self, number: int, *, last: bool) -> None:
        """Hand over everything that was written in this round, and report that."""
