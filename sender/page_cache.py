"""The XBZRLE cache: what the destination holds of pages that were sent of late.

Each page has one line that it may take, by its number. A line is given to another page only when
its own was not sent for a while. Source: QEMU's documentation, docs/xbzrle.txt.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DEFAULT_SIZE = 64 << 20
"""Bytes."""
LIFETIME = 2
"""Rounds during which the page in a line is not given up for another."""

_ADDRESS_SPACE = 1 << 64
_EMPTY = -1

Numbers = npt.NDArray[np.intp]
Pages = npt.NDArray[np.uint8]


class CacheSizeError(ValueError):
    """No cache can have this size; one line."""


def cache_pages(size: int, page_size: int, ram: int) -> int:
    """Pages of a cache of `size` bytes: a power of two. `ram`: bytes of the guest's.

    Raises CacheSizeError.
    """
    for wrong, why in (
        (size >= _ADDRESS_SPACE, "exceeding address space"),
        (size > ram, "exceeds guest RAM size"),
        (size < page_size, "smaller than page size"),
    ):
        if wrong:
            raise CacheSizeError(f"XBZRLE cache size {size}: {why}")
    pages: int = 1 << (size // page_size).bit_length() - 1
    return pages


class PageCache:
    """Lines of one worker; it numbers its pages from 0 on. All arguments are arrays of pages.

    What a line holds is what was put on the wire last (law 2): whoever sends a page in any way
    says so by one of `update`, `insert` and `zero`.
    """

    def __init__(self, lines: int, page_size: int) -> None:
        self._numbers = np.full(lines, _EMPTY, np.intp)
        self._rounds = np.zeros(lines, np.intp)
        self._pages = np.zeros((lines, page_size), np.uint8)

    def __len__(self) -> int:
        return len(self._numbers)

    def resize(self, lines: int) -> None:
        """Keep what has a line of its own there; of several pages for one, that used last."""
        fresh = PageCache(lines, self._pages.shape[1])
        held = np.flatnonzero(self._numbers != _EMPTY)
        if lines:
            # Of those that go to one line, the first: that used last.
            held = held[np.argsort(-self._rounds[held], kind="stable")]
            to, first = np.unique(self._numbers[held] % lines, return_index=True)
            held = held[first]
            fresh._numbers[to] = self._numbers[held]
            fresh._rounds[to] = self._rounds[held]
            fresh._pages[to] = self._pages[held]
        self._numbers, self._rounds, self._pages = fresh._numbers, fresh._rounds, fresh._pages

    def holds(self, numbers: Numbers) -> npt.NDArray[np.bool_]:
        """(n,) bool: which of these pages are here."""
        if not len(self):
            return np.zeros(len(numbers), np.bool_)
        return np.asarray(self._numbers[numbers % len(self)] == numbers)

    def pages(self, numbers: Numbers) -> Pages:
        """(n, page_size), copied: what the destination holds of these, all of which are here."""
        return self._pages[numbers % len(self)]

    def update(self, numbers: Numbers, copies: Pages, number: int) -> None:
        """These pages, which are here, were sent in round `number` as `copies` hold them."""
        lines = numbers % len(self)
        self._pages[lines] = copies
        self._rounds[lines] = number

    def insert(self, numbers: Numbers, copies: Pages, number: int) -> None:
        """The same of pages that are not here; they come in where a line can be had."""
        if not len(self):
            return
        lines, which = np.unique(numbers % len(self), return_index=True)
        free = (self._numbers[lines] == _EMPTY) | (self._rounds[lines] + LIFETIME < number)
        lines, which = lines[free], which[free]
        self._numbers[lines] = numbers[which]
        self._rounds[lines] = number
        self._pages[lines] = copies[which]

    def zero(self, numbers: Numbers, number: int) -> None:
        """These pages were sent as zero."""
        here = numbers[self.holds(numbers)]
        if len(here):
            lines = here % len(self)
            self._pages[lines] = 0
            self._rounds[lines] = number
