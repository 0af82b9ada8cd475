"""Tracks the state of each page of a RAM block in a damaged stream, in one byte per page.

Memory is only used for the parts that arrive, whatever RAM size a stream claims.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from ..console.failure import CommandError
from .survival import MAX_RANGES, Pages

_STEP = 1 << 20
"""The number of pages that are processed at once."""

Numbers = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


class State(IntEnum):
    """The state of a page."""

    NEVER = 0
    SOUND = 1
    DAMAGED = 2
    """The page arrived, but it, or the base that it was decoded against, may be damaged."""
    STALE = 3
    """The page is sound, but a newer version may have been lost."""
    GUESSED = 4
    """The page likely belongs here, but this is not certain."""


class PageStates:
    """The states of the pages 0 to `count` - 1 of a block; at first no page has arrived.

    `zero` means that pages that never arrive are zero, as in a mapped-ram file. Raises CommandError
    if the machine cannot reserve the memory.
    """

    def __init__(self, count: int, *, zero: bool) -> None:
        self.count = count
        self._zero = zero
        self._missed: list[tuple[int, int]] = []
        try:
            self._states = np.zeros(count, np.uint8)
        except MemoryError:
            message = f"RAM of {count} pages is more than this machine can keep track of"
            raise CommandError(message) from None

    def put(self, numbers: Numbers, state: State) -> None:
        """Set the state of these pages (n,)."""
        self._states[numbers] = state

    def change(self, numbers: Numbers, state: State) -> None:
        """Set the state of sound pages (n,) whose content was changed (XBZRLE).

        Guessed pages keep their state; all others become damaged.
        """
        old = self._states[numbers]
        found = np.where(old == State.SOUND, state, State.DAMAGED)
        self._states[numbers] = np.where(old == State.GUESSED, old, found)

    def miss(self, pages: Numbers | slice) -> None:
        """Mark these pages, or the slice of them, as missing in a mapped-ram file."""
        if isinstance(pages, slice):
            self._missed.append((pages.start, pages.stop))
        else:
            self._states[pages] = State.DAMAGED

    def arrived(self, numbers: Numbers) -> bool:
        """Return whether any of these pages (n,) arrived."""
        return bool((self._states[numbers] != State.NEVER).any())

    def doubt(self, start: int, end: int, state: State) -> None:
        """Set the state of all sound pages in a range; STALE is set for guessed pages, too."""
        for first in range(start, end, _STEP):
            some = self._states[first : min(first + _STEP, end)]
            sound = some == State.SOUND
            if state == State.STALE:
                sound |= some == State.GUESSED
            if sound.any():
                some[sound] = state

    def doubt_some(self, numbers: Numbers) -> None:
        """Mark the sound ones of these pages (n,) as stale; numbers outside of the block are
        ignored.
        """
        inside = numbers[numbers < self.count]
        self._states[inside[self._states[inside] == State.SOUND]] = State.STALE

    def lost(self, page_size: int, plugged: Mask | None) -> Pages:
        """Return the pages that never arrived or are damaged; `plugged` (n,) shows which are
        memory.

        None means that all pages are memory.
        """
        return self._pages(self._lost(plugged), page_size)

    def having(self, state: State, page_size: int) -> Pages:
        """Return the pages with this state."""
        return self._pages(((start, some == state) for start, some in self._pieces()), page_size)

    def _lost(self, plugged: Mask | None) -> Iterator[tuple[int, Mask]]:
        for start, some in self._pieces():
            mask = some == State.DAMAGED
            if not self._zero:
                never = some == State.NEVER
                mask |= never if plugged is None else never & plugged[start : start + len(some)]
            for first, last in self._missed:
                mask[max(first - start, 0) : max(last - start, 0)] = True
            yield start, mask

    def _pieces(self) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        for start in range(0, self.count, _STEP):
            yield start, self._states[start : start + _STEP]

    @staticmethod
    def _pages(masks: Iterator[tuple[int, Mask]], page_size: int) -> Pages:
        count, ranges = 0, list[tuple[int, int]]()
        for start, mask in masks:
            count += int(mask.sum())
            edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)) + start
            left = 2 * (MAX_RANGES - len(ranges) + 1)
            for first, last in (edges[:left].reshape(-1, 2) * page_size).tolist():
                if ranges and ranges[-1][1] == first:
                    ranges[-1] = (ranges[-1][0], last)
                elif len(ranges) < MAX_RANGES:
                    ranges.append((first, last))
        return Pages(count, ranges)
