"""Splits the pages of a stream into rounds, which are passes over the dirty pages.

The stream does not mark the start of a round. A page is sent at most once in a round, so a page
that is sent again begins a new round; rounds that have no page in common count as one. The order of
pages in multifd channels is only known between sync points, so a page that was sent earlier in the
current round belongs to the next one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

MOST_ROUNDS = 1000
"""The most rounds that are distinguished; all later ones count as the last."""
_CHUNK_BITS = 18
"""The logarithm of the number of pages in a table; tables only exist where pages arrive."""


class Rounds:
    """The division of pages into rounds; `current` is the round of the last page, from 0 on."""

    def __init__(self) -> None:
        self.current = 0
        self._overtaken = False
        self._sent: dict[tuple[int, int], npt.NDArray[np.uint16]] = {}
        """The round in which each page was last sent, counted from 1."""

    def split(self, block: int, numbers: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
        """Yield (round, number of pages) for pages that are consecutive in the stream."""
        start = 0
        for end in [*(np.flatnonzero(np.diff(numbers) <= 0) + 1).tolist(), len(numbers)]:
            # The page numbers rise up to `end`, so no page is among them twice.
            while start < end:
                count = self._take(block, numbers[start:end])
                if count:
                    yield self.current, count
                    start += count
                if start < end:
                    self.current += 1

    def split_interval(
        self, block: int, numbers: npt.NDArray[np.intp]
    ) -> Iterator[tuple[int, int]]:
        """Yield (round, number of pages) for pages that multifd channels sent between two sync
        points.

        Their order is arbitrary. `end_interval` must be called at the second sync point.
        """
        if self.current + 2 >= MOST_ROUNDS:
            yield self.current, len(numbers)
            return
        chunks, later = numbers >> _CHUNK_BITS, 0
        for chunk in np.unique(chunks).tolist():
            sent = self._table(block, chunk)
            places = numbers[chunks == chunk] - (chunk << _CHUNK_BITS)
            again = sent[places] > self.current
            sent[places] = self.current + 1 + again
            later += int(again.sum())
        if later < len(numbers):
            yield self.current, len(numbers) - later
        if later:
            self._overtaken = True
            yield self.current + 1, later

    def end_interval(self) -> None:
        """Record a sync point: if pages were sent again before it, the next round has begun."""
        self.current += self._overtaken
        self._overtaken = False

    def _take(self, block: int, numbers: npt.NDArray[np.intp]) -> int:
        """Record the leading pages that are new in the current round; return their number."""
        if self.current + 1 >= MOST_ROUNDS:
            return len(numbers)
        chunks = numbers >> _CHUNK_BITS
        taken = 0
        # Nearly always, all are of one table.
        single = chunks[0] == chunks[-1]
        for chunk in [int(chunks[0])] if single else np.unique(chunks).tolist():
            first, last = (
                (0, len(numbers)) if single else np.searchsorted(chunks, [chunk, chunk + 1])
            )
            sent = self._table(block, chunk)
            places = numbers[first:last] - (chunk << _CHUNK_BITS)
            again = np.flatnonzero(sent[places] == self.current + 1)
            count = int(again[0]) if len(again) else len(places)
            sent[places[:count]] = self.current + 1
            taken += count
            if count < len(places):
                break
        return taken

    def _table(self, block: int, chunk: int) -> npt.NDArray[np.uint16]:
        key = (block, chunk)
        if key not in self._sent:
            self._sent[key] = np.zeros(1 << _CHUNK_BITS, np.uint16)
        return self._sent[key]
