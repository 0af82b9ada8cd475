"""Tells the rounds of a stream apart: passes over the pages that were dirty.

The stream does not say where one begins. A page is sent at most once in a round, so where one comes
again, another round has begun; rounds that have no page in common count as one. Of multifd channels
the order is known from sync point to sync point: what came before in the round is of the next.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

MOST_ROUNDS = 1000
"""So many are told apart; all that follow count as the last."""
_CHUNK_BITS = 18
"""Pages whose rounds are kept together: memory is taken only where pages come."""


class Rounds:
    """`current`: the number of the round that the last page belongs to, from 0 on."""

    def __init__(self) -> None:
        self.current = 0
        self._overtaken = False
        self._sent: dict[tuple[int, int], npt.NDArray[np.uint16]] = {}
        """Of each page, the round in which it was last sent, from 1 on."""

    def split(self, block: int, numbers: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
        """Of pages that follow each other in the stream: a round, and how many are of it."""
        start = 0
        for end in [*(np.flatnonzero(np.diff(numbers) <= 0) + 1).tolist(), len(numbers)]:
            # Rising numbers: none of them comes twice.
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
        """Of pages that multifd channels sent in any order between two sync points: a round, and
        how many are of it. `end_interval` has to be called at the second one."""
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
        """A sync point: if pages came again before it, the next round has begun."""
        self.current += self._overtaken
        self._overtaken = False

    def _take(self, block: int, numbers: npt.NDArray[np.intp]) -> int:
        """How many of these pages the current round has first; they are noted."""
        if self.current + 1 >= MOST_ROUNDS:
            return len(numbers)
        chunks = numbers >> _CHUNK_BITS
        taken = 0
        for chunk in np.unique(chunks).tolist():
            first, last = np.searchsorted(chunks, [chunk, chunk + 1])
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
