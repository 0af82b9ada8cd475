"""Measure what XBZRLE and zstd would gain for the pages that a busy guest keeps dirtying.

A few of the pages that are sent whole again and again are kept; when they are sent again, both
encodings are tried on them. The user of a stalled migration then learns which one would help.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..protocol.pages.xbzrle import Delta
from ..transport.compression import Framer
from ..transport.counters import Counters

PAGES = 64
"""Number of pages kept at a time."""
CHUNK_PAGES = 8
"""Pages taken from one chunk at most, so that the sample covers all of RAM."""
LEVEL = 1

SAMPLE_COUNTERS = ("sampled", "sampled_delta", "sampled_zstd")
"""Counters, in bytes: pages sent again, and their size under XBZRLE and under zstd."""

Numbers = npt.NDArray[np.intp]
Pages = npt.NDArray[np.uint8]


class Sampler:
    """The sampled pages of one worker; `counters` has SAMPLE_COUNTERS."""

    def __init__(self, page_size: int, counters: Counters) -> None:
        self._numbers = np.empty(0, np.intp)
        self._pages = np.empty((0, page_size), np.uint8)
        self._came = np.empty(0, np.bool_)
        self._framer = Framer()
        self._counters = counters

    def begin_round(self) -> None:
        """Drop the pages that were not sent in the last round, to make room for others."""
        self._numbers, self._pages = self._numbers[self._came], self._pages[self._came]
        self._came = np.zeros(len(self._numbers), np.bool_)

    def sent(self, numbers: Numbers, copies: Pages) -> None:
        """Record that these pages (n,), of one chunk, were sent as `copies` (n, page_size)."""
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
