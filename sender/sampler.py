"""What XBZRLE and zstd would make of the pages that a busy guest keeps dirtying.

Of the pages sent again and again as they are, a few are kept; when they come again, both encodings
are tried on them. So whoever watches a migration that stalls can be told which one would help.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..protocol.pages.xbzrle import Delta
from ..transport.counters import Counters
from .compression import Framer

PAGES = 64
"""Kept at a time."""
CHUNK_PAGES = 8
"""Taken of one chunk, so that they come from all over RAM."""
LEVEL = 1

SAMPLE_COUNTERS = ("sampled", "sampled_delta", "sampled_zstd")
"""Bytes of pages that came again, and what XBZRLE and zstd would have made of them."""

Numbers = npt.NDArray[np.intp]
Pages = npt.NDArray[np.uint8]


class Sampler:
    """Of one worker; `counters`: SAMPLE_COUNTERS."""

    def __init__(self, page_size: int, counters: Counters) -> None:
        self._numbers = np.empty(0, np.intp)
        self._pages = np.empty((0, page_size), np.uint8)
        self._came = np.empty(0, np.bool_)
        self._framer = Framer()
        self._counters = counters

    def begin_round(self) -> None:
        """Pages that did not come in the last round make room for others."""
        self._numbers, self._pages = self._numbers[self._came], self._pages[self._came]
        self._came = np.zeros(len(self._numbers), np.bool_)

    def sent(self, numbers: Numbers, copies: Pages) -> None:
        """These pages (n,), of one chunk, were sent as `copies` (n, page_size)."""
        _, ours, theirs = np.intersect1d(
            self._numbers, numbers, assume_unique=True, return_indices=True
        )
        if len(ours):
            self._try(self._pages[ours], copies[theirs])
            self._pages[ours] = copies[theirs]
            self._came[ours] = True
        elif len(self._numbers) < PAGES:
            self._keep(numbers[:CHUNK_PAGES], copies[:CHUNK_PAGES])

    def _keep(self, numbers: Numbers, copies: Pages) -> None:
        self._numbers = np.concatenate([self._numbers, numbers])
        self._pages = np.concatenate([self._pages, copies])
        self._came = np.concatenate([self._came, np.ones(len(numbers), np.bool_)])

    def _try(self, old: Pages, new: Pages) -> None:
        delta = Delta(old, new)
        whole = int(delta.overflow.sum()) * new.shape[1]
        self._counters.add("sampled", new.size)
        self._counters.add("sampled_delta", delta.pack_size(None) + whole)
        content = np.ascontiguousarray(new)
        self._counters.add("sampled_zstd", len(self._framer.frame(content.data, LEVEL)))
