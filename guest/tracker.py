"""Dirty tracking: which pages changed since they were last sent."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest


class DirtyTracker(Protocol):
    """Remembers what was sent of one RAM block. Page numbers count from the block's start."""

    def scan(self, pages: npt.NDArray[np.uint8], first: int) -> npt.NDArray[np.bool_]:
        """(n,) bool for live `pages` (n, page_size), of which the first is page `first`."""

    def not_sent_as_zero(self, first: int, end: int) -> npt.NDArray[np.intp]:
        """Numbers of the pages from `first` to before `end` that were not last sent as zero."""

    def sent(self, numbers: npt.NDArray[np.intp], copies: npt.NDArray[np.uint8]) -> None:
        """These pages were put on the wire as `copies` (n, page_size) hold them."""

    def sent_zero(self, numbers: npt.NDArray[np.intp]) -> None:
        """These pages were put on the wire as zero."""


class DigestTracker:
    """Compares xxh3-128 digests: sees any change, whoever made it, by reading all pages.

    Only bytes that went on the wire are digested into the table (never memory that may change
    between the look and the copy), so a page that was written meanwhile is found again.
    """

    def __init__(self, page_count: int, page_size: int) -> None:
        self._digests = np.zeros((page_count, 2), np.uint64)
        self._was_sent = np.zeros(page_count, np.bool_)
        self._zero = np.frombuffer(xxh3_128_digest(bytes(page_size)), np.uint64)

    def scan(self, pages: npt.NDArray[np.uint8], first: int) -> npt.NDArray[np.bool_]:
        """See DirtyTracker; a page that was never sent is dirty, and is not read."""
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
        """See DirtyTracker."""
        zero = (self._digests[first:end] == self._zero).all(axis=1) & self._was_sent[first:end]
        return first + np.flatnonzero(~zero)

    def sent(self, numbers: npt.NDArray[np.intp], copies: npt.NDArray[np.uint8]) -> None:
        """See DirtyTracker."""
        self._digests[numbers] = page_digests(copies)
        self._was_sent[numbers] = True

    def sent_zero(self, numbers: npt.NDArray[np.intp]) -> None:
        """See DirtyTracker."""
        self._digests[numbers] = self._zero
        self._was_sent[numbers] = True


def page_digests(pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """(n, 2) u64, xxh3-128 of each page of (n, page_size): the only thing done page by page."""
    return np.frombuffer(b"".join([xxh3_128_digest(page) for page in pages]), np.uint64).reshape(
        -1, 2
    )
