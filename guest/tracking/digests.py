"""Find dirty pages by digests of what was sent: the way for any memory, and the slow one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from .tracker import Mask


class DigestTracker:
    """A tracker that compares xxh3-128 digests: it reads all pages and sees any change by anyone.

    The table only has digests of bytes that were put on the wire, never of memory that may change
    between the comparison and the copy, so a page that was written meanwhile is found again.
    """

    compares = True
    """True: digests of what was sent are what a page is compared with."""

    def __init__(self, page_count: int, page_size: int) -> None:
        self._digests = np.zeros((page_count, 2), np.uint64)
        self._was_sent = np.zeros(page_count, np.bool_)
        self._zero = np.frombuffer(xxh3_128_digest(bytes(page_size)), np.uint64)

    def chunks_to_take(self, size: int) -> Mask:
        """Return that any chunk may have dirty pages: only reading them shows which."""
        return np.ones(-(-len(self._was_sent) // size), np.bool_)

    def take_dirty(self, first: int, end: int) -> Mask:
        """Return that any page may be dirty; there is nothing to re-arm."""
        return np.ones(end - first, np.bool_)

    def changed(self, pages: npt.NDArray[np.uint8], first: int, taken: Mask) -> Mask:
        """Return a mask of the dirty pages; a page never sent is dirty, and is not read."""
        known = self._was_sent[first : first + len(pages)] & taken
        if known.all():
            table = self._digests[first : first + len(pages)]
            return np.asarray((page_digests(pages) != table).any(axis=1))
        dirty = taken & ~known
        if known.any():
            numbers = np.flatnonzero(known)
            now = page_digests(pages[numbers])
            dirty[numbers] = (now != self._digests[first + numbers]).any(axis=1)
        return dirty

    def changed_to_zero(self, first: int, taken: Mask) -> Mask:
        """Return a mask of the pages that were not last sent as zero."""
        end = first + len(taken)
        zero = (self._digests[first:end] == self._zero).all(axis=1) & self._was_sent[first:end]
        return np.asarray(taken & ~zero)

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
