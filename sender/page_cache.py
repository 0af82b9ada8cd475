"""Keep the XBZRLE cache: copies of recently sent pages, as the destination holds them.

The number of a page selects the one line that it may use. A line passes to another page only when
its own page was not sent for LIFETIME rounds. Source: QEMU's documentation, docs/xbzrle.txt.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..protocol.errors import VmferryError

LIFETIME = 2
"""Rounds during which a line keeps its page."""

_ADDRESS_SPACE = 1 << 64
_EMPTY = -1

Numbers = npt.NDArray[np.intp]
Pages = npt.NDArray[np.uint8]


class CacheSizeError(VmferryError, ValueError):
    """No cache can have the requested size; the message is one line."""


def cache_pages(size: int, page_size: int, ram: int) -> int:
    """Return the number of pages, a power of two, in a cache of `size` bytes.

    `ram` is the size of guest RAM in bytes. Raises CacheSizeError.
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
    """The cache lines of one worker, which numbers its pages from 0 on.

    Arguments are arrays of pages.

    A line always holds what was put on the wire last (law 2), so every page that is sent in any way
    must be reported by one of `update`, `insert` and `zero`.
    """

    def __init__(self, lines: int, page_size: int) -> None:
        self._numbers = np.full(lines, _EMPTY, np.intp)
        self._rounds = np.zeros(lines, np.intp)
        self._pages = np.zeros((lines, page_size), np.uint8)

    def __len__(self) -> int:
        return len(self._numbers)

    def resize(self, lines: int) -> None:
        """Change the number of lines. If several pages map to one line, keep the one sent last."""
        fresh = PageCache(lines, self._pages.shape[1])
        held = np.flatnonzero(self._numbers != _EMPTY)
        if lines:
            # Of the pages that map to one line, `unique` keeps the first: the one sent last.
            held = held[np.argsort(-self._rounds[held], kind="stable")]
            to, first = np.unique(self._numbers[held] % lines, return_index=True)
            held = held[first]
            fresh._numbers[to] = self._numbers[held]
            fresh._rounds[to] = self._rounds[held]
            fresh._pages[to] = self._pages[held]
        self._numbers, self._rounds, self._pages = fresh._numbers, fresh._rounds, fresh._pages

    def holds(self, numbers: Numbers) -> npt.NDArray[np.bool_]:
        """Return a mask, (n,) bool, of the pages that are in the cache."""
        if not len(self):
            return np.zeros(len(numbers), np.bool_)
        return np.asarray(self._numbers[numbers % len(self)] == numbers)

    def pages(self, numbers: Numbers) -> Pages:
        """Return copies, (n, page_size), of these pages as the destination holds them.

        All of them must be in the cache.
        """
        return self._pages[numbers % len(self)]

    def update(self, numbers: Numbers, copies: Pages, number: int) -> None:
        """Record that these cached pages were sent in round `number` as `copies` hold them."""
        lines = numbers % len(self)
        self._pages[lines] = copies
        self._rounds[lines] = number

    def insert(self, numbers: Numbers, copies: Pages, number: int) -> None:
        """Record that these uncached pages were sent in round `number`.

        A page enters the cache if its line is empty, or its page was not sent for LIFETIME rounds.
        """
        if not len(self):
            return
        lines, which = np.unique(numbers % len(self), return_index=True)
        free = (self._numbers[lines] == _EMPTY) | (self._rounds[lines] + LIFETIME < number)
        lines, which = lines[free], which[free]
        self._numbers[lines] = numbers[which]
        self._rounds[lines] = number
        self._pages[lines] = copies[which]

    def zero(self, numbers: Numbers, number: int) -> None:
        """Record that these pages were sent as zero in round `number`."""
        here = numbers[self.holds(numbers)]
        if len(here):
            lines = here % len(self)
            self._pages[lines] = 0
            self._rounds[lines] = number
