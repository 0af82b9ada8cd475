"""Track dirty pages: those that changed since they were last sent."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest


class DirtyTracker(Protocol):
    """A record of what was sent of one RAM block. Page numbers count from the block's start."""

    def scan(self, pages: npt.NDArray[np.uint8], first: int) -> npt.NDArray[np.bool_]:
        """Return a mask, (n,) bool, of the dirty ones among live `pages` (n, page_size).

        The first of them is page `first` of the block.
        """

    def not_sent_as_zero(self, first: int, end: int) -> npt.NDArray[np.intp]:
        """Return the numbers of pages, `first` to before `end`, that were not last sent as zero."""

    def sent(self, numbers: npt.NDArray[np.intp], copies: npt.NDArray[np.uint8]) -> None:
        """Record that these pages were put on the wire as `copies` (n, page_size) hold them."""

    def sent_zero(self, numbers: npt.NDArray[np.intp]) -> None:
        """Record that these pages were put on the wire as zero."""


class DigestTracker:
    """A tracker that compares xxh3-128 digests: it reads all pages and sees any change by anyone.

    The table only has digests of bytes that were put on the wire, never of memory that may change
    between the comparison and the copy, so a page that was written meanwhile is found again.
    """

    def __init__(self, page_count: int, page_size: int) -> None:
        self._digests = np.zeros((page_count, 2), np.uint64)
        self._was_sent = np.zeros(page_count, np.bool_)
        self._zero = np.frombuffer(xxh3_128_digest(bytes(page_size)), np.uint64)

    def scan(self, pages: npt.NDArray[np.uint8], first: int) -> npt.NDArray[np.bool_]:
        """Return a mask of the dirty pages; a page never sent is dirty, and is not read."""
        known = self._was_sent[first : first + len(pages)]
        dirty = ~known
        if known.all():
            table = self._digests[first : first + len(pages)]
            return np.asarray((page_digests(pages) != table).any(axis=1))
        if known.any():
            numbers = np.flatnonzero(known)
            now = page_digests(pages[numbers])
            dirty[numbers] = (now != self._digests[first + numbers]).any(axis=1)
        return dirty

    def not_sent_as_zero(self, first: int, end: int) -> npt.NDArray[np.intp]:
        """Return the numbers of pages in the range that were not last sent as zero."""
        zero = (self._digests[first:end] == self._zero).all(axis=1) & self._was_sent[first:end]
        return first + np.flatnonzero(~zero)

    def sent(self, numbers: npt.NDArray[np.intp], copies: npt.NDArray[np.uint8]) -> None:
        """Record the digests of these copies, which were put on the wire."""
        self._digests[numbers] = page_digests(copies)
        self._was_sent[numbers] = True

    def sent_zero(self, numbers: npt.NDArray[np.intp]) -> None:
        """Record that these pages were put on the wire as zero."""
        self._digests[numbers] = self._zero
        self._was_sent[numbers] = True


def page_digests(pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the xxh3-128 digest, (n, 2) u64, of each page of (n, page_size).

    Nothing else is done page by page.
    """
    return np.frombuffer(b"".join([xxh3_128_digest(page) for page in pages]), np.uint64).reshape(
        -1, 2
    )
