"""Send pages as differences to what the destination holds (XBZRLE), where the cache has them."""

from __future__ import annotations

from ..protocol.pages.xbzrle import Delta
from ..transport.counters import Counters
from .chunks import Chunk
from .page_cache import PageCache
from .page_writer import Numbers, Pages
from .record_writer import RecordWriter

DELTA_COUNTERS = ("unchanged", "xbzrle_pages", "xbzrle_bytes", "cache_miss", "overflow")
"""Counters: pages that equal their line; those sent as differences, and the bytes of these; those
without a line; and those whose difference would be longer than the page."""


class Deltas:
    """The XBZRLE encoder of one worker, and its cache, which is empty until it is given a size.

    Pages are numbered as the worker numbers its own. `counters` has DELTA_COUNTERS and `normal`.
    """

    def __init__(self, writer: RecordWriter, page_size: int, counters: Counters) -> None:
        self._writer = writer
        self._cache = PageCache(0, page_size)
        self._counters = counters

    def resize(self, lines: int) -> None:
        """Change the number of pages in the cache, if it is another one."""
        if lines != len(self._cache):
            self._cache.resize(lines)

    def send(self, chunk: Chunk, indexes: Numbers, number: int) -> tuple[Numbers, Numbers, Pages]:
        """Send the changes of pages in round `number`, as far as they have a line in the cache.

        Return the indexes of the pages that have none, and of those that were sent, with copies
        (n, page_size) of the latter as the destination holds them now.
        """
        here = self._cache.holds(chunk.own + indexes)
        missed, indexes = indexes[~here], indexes[here]
        self._counters.add("cache_miss", len(missed))
        copies = chunk.block.ram[chunk.first + indexes]
        if len(indexes):
            own = chunk.own + indexes
            self._send(chunk, indexes, Delta(self._cache.pages(own), copies), copies)
            self._cache.update(own, copies, number)
        return missed, indexes, copies

    def _send(self, chunk: Chunk, indexes: Numbers, delta: Delta, copies: Pages) -> None:
        name = chunk.block.name
        size = delta.pack_size(name)
        if size:
            out = self._writer.room(size)
            self._writer.used(delta.pack(out, name, chunk.offsets(indexes)))
        over = delta.overflow
        if over.any():
            # The copy is sent, not the page as it is by now: the cache line gets the same bytes.
            self._writer.copies(chunk, indexes[over], copies[over])
        encoded, overflow = int(delta.encoded.sum()), int(over.sum())
        self._counters.add("xbzrle_pages", encoded)
        self._counters.add("xbzrle_bytes", size)
        self._counters.add("overflow", overflow)
        self._counters.add("normal", overflow)
        self._counters.add("unchanged", len(indexes) - encoded - overflow)

    def sent_plain(self, chunk: Chunk, indexes: Numbers, copies: Pages, number: int) -> None:
        """Record that pages without a line were sent in round `number` as `copies` hold them."""
        self._cache.insert(chunk.own + indexes, copies, number)

    def sent_zero(self, chunk: Chunk, indexes: Numbers, number: int) -> None:
        """Record that these pages were sent as zero in round `number`."""
        self._cache.zero(chunk.own + indexes, number)

    def __bool__(self) -> bool:
        return bool(len(self._cache))
