"""Find the dirty pages of one worker's part of RAM, round by round, and have them written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..guest.mapping import is_hole
from ..guest.zero import zero_mask
from ..transport.compression import COMPRESSION_COUNTERS
from ..transport.counters import Counters
from .chunks import CHUNK_PAGES, Chunk, MappedBlock
from .deltas import DELTA_COUNTERS, Deltas
from .outlet import OUTLET_COUNTERS
from .page_writer import Numbers, Pages, PageWriter
from .sampler import SAMPLE_COUNTERS, Sampler
from .share import Share
from .sources import StartRound

WORKER_COUNTERS = (
    "scanned",
    "normal",
    "duplicate",
    *DELTA_COUNTERS,
    *COMPRESSION_COUNTERS,
    *SAMPLE_COUNTERS,
    *OUTLET_COUNTERS,
)
"""Counters of one worker; those of OUTLET_COUNTERS count its own channel, if it has one."""


class Worker:
    """The scanner of one worker's chunks, round by round, as the coordinator commands.

    `limits` has `xbzrle_cache`, the cache pages of all workers together; 0 means no XBZRLE.
    `deltas` and `sampler` are None where pages are not written as records.
    """

    def __init__(
        self,
        share: Share,
        blocks: list[MappedBlock],
        writer: PageWriter,
        counters: Counters,
        limits: Counters,
        *,
        deltas: Deltas | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._share = share
        self._blocks = blocks
        self._writer = writer
        self.counters = counters
        """The counters of WORKER_COUNTERS, as far as this worker's pages go."""
        self._limits = limits
        self._deltas = deltas
        self._sampler = sampler

    def run_round(self, command: StartRound) -> None:
        """Send every page of this worker that changed since it was last sent.

        Raises EOFError when the coordinator stops the round.
        """
        if self._deltas is not None:
            self._deltas.resize(self._share.of(self._limits["xbzrle_cache"]))
        if self._sampler is not None:
            self._sampler.begin_round()
        for chunk in self._chunks():
            self._writer.check()
            self._send_chunk(chunk, command)
        self._writer.end_round(command.number, last=not command.tracked)

    def _chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of this worker that may hold dirty pages."""
        share, number = self._share, 0
        for block in self._blocks:
            to_take = block.tracker.chunks_to_take(CHUNK_PAGES)
            own = share.own(number, len(to_take))
            skipped = own[~to_take[own]] * CHUNK_PAGES
            clean = np.minimum(len(block.ram) - skipped, CHUNK_PAGES).sum()
            self.counters.add("scanned", int(clean))
            for chunk in own[to_take[own]].tolist():
                yield Chunk(
                    block, chunk * CHUNK_PAGES, (number + chunk) // share.count * CHUNK_PAGES
                )
            number += len(to_take)

    def _send_chunk(self, chunk: Chunk, command: StartRound) -> None:
        block, first = chunk.block, chunk.first
        ram = block.ram[first : first + CHUNK_PAGES]
        self.counters.add("scanned", len(ram))
        end = first + len(ram)
        # Law 1: whatever is looked at from here on, a later write marks the page again.
        taken = block.tracker.take_dirty(first, end)
        if not taken.any():
            return
        hole = self._writer.finds_zero and is_hole(
            block.block, first * block.page_size, end * block.page_size
        )
        if hole:
            indexes = np.flatnonzero(block.tracker.changed_to_zero(first, taken))
            self._send_zero(chunk, indexes, command)
            return
        dirty = block.tracker.changed(ram, first, taken)
        if not dirty.any():
            return
        # A page read as zero is sent as ZERO, and the table gets the digest of zeros, whatever the
        # guest has written meanwhile: the digest matches the bytes on the wire either way.
        zero = self._zero_pages(ram, dirty)
        self._send_zero(chunk, np.flatnonzero(zero), command)
        indexes = np.flatnonzero(dirty & ~zero)
        # Before all pages were sent once, the destination has nothing to compare with.
        if self._deltas and command.number:
            indexes = self._send_changes(self._deltas, chunk, indexes, command)
        self._send_plain(chunk, indexes, command)

    def _zero_pages(self, ram: Pages, dirty: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return which of the dirty pages are zero, if the writer wants to know."""
        zero = np.zeros(len(ram), np.bool_)
        if self._writer.finds_zero:
            zero[dirty] = zero_mask(ram if dirty.all() else ram[dirty])
        return zero

    def _send_zero(self, chunk: Chunk, indexes: Numbers, command: StartRound) -> None:
        if not len(indexes):
            return
        self._writer.zero(chunk, indexes)
        if self._deltas is not None:
            self._deltas.sent_zero(chunk, indexes, command.number)
        if command.tracked:
            chunk.block.tracker.sent_zero(chunk.first + indexes)
        self.counters.add("duplicate", len(indexes))

    def _send_changes(
        self, deltas: Deltas, chunk: Chunk, indexes: Numbers, command: StartRound
    ) -> Numbers:
        """Send the changes of pages that have a line in the cache; return the other pages."""
        missed, sent, copies = deltas.send(chunk, indexes, command.number)
        if command.tracked and len(sent):
            chunk.block.tracker.sent(chunk.first + sent, copies)
        return missed

    def _send_plain(self, chunk: Chunk, indexes: Numbers, command: StartRound) -> None:
        if not len(indexes):
            return
        tracker = chunk.block.tracker
        copies = self._writer.plain(chunk, indexes, kept=command.tracked and tracker.compares)
        self.counters.add("normal", len(indexes))
        if not command.tracked or copies is None:
            return
        tracker.sent(chunk.first + indexes, copies)
        if command.number and self._deltas is not None:
            self._deltas.sent_plain(chunk, indexes, copies, command.number)
        if command.number and self._sampler is not None:
            self._sampler.sent(chunk.own + indexes, copies)
