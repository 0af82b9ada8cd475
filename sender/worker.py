"""One process of the scan-and-encode pool: find dirty pages and lay them out in ring slots.

Every slot that it publishes is a whole SECTION_PART of the `ram` section, ready for the wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..guest.base import RamBlock, is_hole, map_block, populate_present
from ..guest.tracking.digests import DigestTracker
from ..guest.tracking.marks import MarkTracker
from ..guest.tracking.table import TableTracker, map_table
from ..guest.tracking.tracker import Tracker
from ..guest.zero import zero_mask
from ..protocol.pages import records
from ..protocol.pages.xbzrle import Delta
from ..protocol.wire.ram import RECORD_HEADER_SIZE, end_of_ram
from ..protocol.wire.stream import section_footer, section_part
from ..transport.counters import Counters
from ..transport.process import receive_fd, send_message
from ..transport.ring import Ring
from ..transport.settings import TrackerKind
from . import adaptive
from .compressed_slots import Choice, FramedRingSlots
from .compression import COMPRESSION_COUNTERS, Compression, LinkMeter
from .page_cache import PageCache
from .sampler import SAMPLE_COUNTERS, Sampler
from .slots import RingSlots, Slots
from .tracking import BY_DIGESTS, WorkerTracking

CHUNK_PAGES = 512
"""Pages that are scanned at once; also the unit in which RAM is distributed to the workers."""

WORKER_COUNTERS = (
    "scanned",
    "normal",
    "duplicate",
    "unchanged",
    "xbzrle_pages",
    "xbzrle_bytes",
    "cache_miss",
    "overflow",
    *COMPRESSION_COUNTERS,
    *SAMPLE_COUNTERS,
)


def slot_size(page_size: int) -> int:
    """Return the bytes of a slot: a chunk of plain pages, its names and the section around it."""
    return CHUNK_PAGES * (page_size + RECORD_HEADER_SIZE) + 4096


@dataclass(frozen=True)
class WorkerSetup:
    """The setup of a worker, which owns chunks `index`, `index + count`, ..."""

    index: int
    count: int
    section_id: int
    slot_size: int
    counters: Counters
    sent: Counters
    """Counters of the transport process."""
    limits: Counters
    """Limits with `xbzrle_cache`, the cache pages of all workers together; 0 means no XBZRLE."""
    layout: tuple[dict[str, Any], ...]
    tracking: WorkerTracking = BY_DIGESTS
    compression: Compression | None = None


@dataclass(frozen=True)
class StartRound:
    """Command: make one pass. `tracked`: keep digests, because another round will follow."""

    number: int
    tracked: bool


@dataclass(frozen=True)
class MappedBlock:
    """A RAM block as this worker sees it: pages as an array (n, page_size), and its tracker."""

    block: RamBlock
    name: bytes
    page_size: int
    ram: npt.NDArray[np.uint8]
    tracker: Tracker


@dataclass(frozen=True)
class Chunk:
    """The pages of a block that are scanned at once, from page `first` on.

    `own` is the number of the first one among the pages of this worker.
    """

    block: MappedBlock
    first: int
    own: int

    def offsets(self, indexes: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
        """Return the offsets in the block, in bytes, of these pages of the chunk."""
        return (self.first + indexes).astype(np.uint64) * np.uint64(self.block.page_size)


class SlotBuilder:
    """A builder of section parts in ring slots; a part grows until the next chunk does not fit."""

    def __init__(self, slots: Slots, section_id: int) -> None:
        self._slots = slots
        self._head = section_part(section_id)
        self._tail = end_of_ram() + section_footer(section_id)
        self._view: npt.NDArray[np.uint8] | None = None
        self._used = 0

    def room(self, size: int) -> npt.NDArray[np.uint8]:
        """Return an array of at least `size` bytes to write into; call `used` afterwards."""
        view = self._view
        if view is not None and self._used + size + len(self._tail) > len(view):
            self.flush()
            view = None
        if view is None:
            view = self._view = np.frombuffer(self._slots.acquire(), np.uint8)
            self._used = 0
            self._put(self._head)
        return view[self._used :]

    def used(self, size: int) -> None:
        """Record that `size` bytes of the last `room` now hold records."""
        self._used += size

    def flush(self) -> None:
        """Close the part and publish the slot, if one is open."""
        if self._view is None:
            return
        self._put(self._tail)
        self._view = None
        self._slots.publish(self._used)

    def _put(self, data: bytes) -> None:
        assert self._view is not None
        self._view[self._used : self._used + len(data)] = np.frombuffer(data, np.uint8)
        self._used += len(data)


class Worker:
    """The scanner of one worker's chunks, round by round, as the coordinator commands."""

    def __init__(self, setup: WorkerSetup, blocks: list[MappedBlock], slots: Slots) -> None:
        self._setup = setup
        self._blocks = blocks
        self.counters = setup.counters
        """The counters of WORKER_COUNTERS, as far as this worker's pages go."""
        self._slots = slots
        self._records = SlotBuilder(slots, setup.section_id)
        self._cache = PageCache(0, blocks[0].page_size)
        self._sampler = Sampler(blocks[0].page_size, setup.counters)

    def run_round(self, command: StartRound) -> None:
        """Send every page of this worker that changed since it was last sent.

        Raises EOFError when the coordinator stops the round.
        """
        self._size_cache()
        self._sampler.begin_round()
        for chunk in self._chunks():
            self._slots.check()
            self._send_chunk(chunk, command)
        self._records.flush()
        self._slots.end_round(command.number)

    def _size_cache(self) -> None:
        """Resize the cache to this worker's share of what the coordinator wants now."""
        whole, count = self._setup.limits["xbzrle_cache"], self._setup.count
        lines = whole // count + (self._setup.index < whole % count)
        if lines != len(self._cache):
            self._cache.resize(lines)

    def _chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of this worker that may hold dirty pages."""
        setup, number = self._setup, 0
        for block in self._blocks:
            to_take = block.tracker.chunks_to_take(CHUNK_PAGES)
            own = np.arange((setup.index - number) % setup.count, len(to_take), setup.count)
            skipped = own[~to_take[own]] * CHUNK_PAGES
            clean = np.minimum(len(block.ram) - skipped, CHUNK_PAGES).sum()
            self.counters.add("scanned", int(clean))
            for chunk in own[to_take[own]].tolist():
                yield Chunk(
                    block, chunk * CHUNK_PAGES, (number + chunk) // setup.count * CHUNK_PAGES
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
        if is_hole(block.block, first * block.page_size, end * block.page_size):
            indexes = np.flatnonzero(block.tracker.changed_to_zero(first, taken))
            self._send_zero(chunk, indexes, command)
            return
        dirty = block.tracker.changed(ram, first, taken)
        if not dirty.any():
            return
        # A page read as zero is sent as ZERO, and the table gets the digest of zeros, whatever the
        # guest has written meanwhile: the digest matches the bytes on the wire either way.
        zero = np.zeros(len(ram), np.bool_)
        zero[dirty] = zero_mask(ram if dirty.all() else ram[dirty])
        self._send_zero(chunk, np.flatnonzero(zero), command)
        indexes = np.flatnonzero(dirty & ~zero)
        # Before all pages were sent once, the destination has nothing to compare with.
        if len(self._cache) and command.number:
            indexes = self._send_changes(chunk, indexes, command)
        self._send_plain(chunk, indexes, command)

    def _send_zero(self, chunk: Chunk, indexes: npt.NDArray[np.intp], command: StartRound) -> None:
        if not len(indexes):
            return
        block = chunk.block
        out = self._records.room(records.zero_size(len(indexes), block.name))
        self._records.used(records.pack_zero(out, block.name, chunk.offsets(indexes)))
        self._cache.zero(chunk.own + indexes, command.number)
        if command.tracked:
            block.tracker.sent_zero(chunk.first + indexes)
        self.counters.add("duplicate", len(indexes))

    def _send_changes(
        self, chunk: Chunk, indexes: npt.NDArray[np.intp], command: StartRound
    ) -> npt.NDArray[np.intp]:
        """Send the changes of pages that have a line in the cache; return the other pages."""
        here = self._cache.holds(chunk.own + indexes)
        missed, indexes = indexes[~here], indexes[here]
        self.counters.add("cache_miss", len(missed))
        if not len(indexes):
            return missed
        block, own = chunk.block, chunk.own + indexes
        copies = block.ram[chunk.first + indexes]
        delta = Delta(self._cache.pages(own), copies)
        size = delta.pack_size(block.name)
        if size:
            out = self._records.room(size)
            self._records.used(delta.pack(out, block.name, chunk.offsets(indexes)))
        over = delta.overflow
        if over.any():
            # The copy is sent, not the page as it is by now: the cache line gets the same bytes.
            out = self._records.room(records.plain_size(over.sum(), block.page_size, block.name))
            offsets = chunk.offsets(indexes[over])
            self._records.used(records.pack_plain(out, block.name, offsets, copies[over]))
        self._cache.update(own, copies, command.number)
        if command.tracked:
            block.tracker.sent(chunk.first + indexes, copies)
        encoded, overflow = int(delta.encoded.sum()), int(over.sum())
        self.counters.add("xbzrle_pages", encoded)
        self.counters.add("xbzrle_bytes", size)
        self.counters.add("overflow", overflow)
        self.counters.add("normal", overflow)
        self.counters.add("unchanged", len(indexes) - encoded - overflow)
        return missed

    def _send_plain(self, chunk: Chunk, indexes: npt.NDArray[np.intp], command: StartRound) -> None:
        count = len(indexes)
        if not count:
            return
        block, first = chunk.block, chunk.first
        size = records.plain_size(count, block.page_size, block.name)
        out = self._records.room(size)
        offsets = chunk.offsets(indexes)
        if indexes[-1] - indexes[0] == count - 1:
            start = first + int(indexes[0])
            records.pack_plain(out, block.name, offsets, block.ram[start : start + count])
        else:
            records.pack_plain_gather(out, block.name, offsets, block.ram, indexes + first)
        if command.tracked:
            stride = block.page_size + RECORD_HEADER_SIZE
            data = size - count * stride + RECORD_HEADER_SIZE
            copies = np.ndarray(
                (count, block.page_size), np.uint8, out, offset=data, strides=(stride, 1)
            )
            block.tracker.sent(indexes + first, copies)
            if command.number:
                self._cache.insert(chunk.own + indexes, copies, command.number)
                self._sampler.sent(chunk.own + indexes, copies)
        self._records.used(size)
        self.counters.add("normal", count)


def map_blocks(connection: Connection, setup: WorkerSetup) -> list[MappedBlock]:
    """Map all RAM, whose descriptors arrive over `connection`."""
    fds = [receive_fd(connection) for _ in setup.layout]
    more = [receive_fd(connection) for _ in range(setup.tracking.fds)]
    blocks = [RamBlock(fd=fd, **fields) for fields, fd in zip(setup.layout, fds, strict=True)]
    mapped = []
    for block, tracker in zip(blocks, _trackers(setup.tracking, blocks, more), strict=True):
        flat = map_block(block)
        populate_present(flat, block)
        ram = flat.reshape(-1, block.page_size)
        mapped.append(MappedBlock(block, block.name.encode(), block.page_size, ram, tracker))
    return mapped


def _trackers(
    tracking: WorkerTracking, blocks: Sequence[RamBlock], fds: Sequence[int]
) -> list[Tracker]:
    """Return the tracker of each block, by `fds` that belong to this way of tracking."""
    counts = [block.length // block.page_size for block in blocks]
    if tracking.kind is TrackerKind.SOFT_DIRTY:
        return [TableTracker(part) for part in map_table(fds[0], counts)]
    each = list(zip(counts, blocks, strict=True))
    if tracking.kind is TrackerKind.USERFAULTFD:
        return [
            MarkTracker(fds[0], address, count, block.page_size)
            for address, (count, block) in zip(tracking.addresses, each, strict=True)
        ]
    return [DigestTracker(count, block.page_size) for count, block in each]


def make_choice(
    setup: WorkerSetup, compression: Compression, pipeline: adaptive.Pipeline
) -> Choice:
    """Return the choice of a compression level for one process."""
    choose = adaptive.Adaptive(pipeline, compression.levels)
    return Choice(choose, setup.counters, LinkMeter(setup.sent, setup.limits))


def run_worker(connection: Connection, setup: WorkerSetup, ring: Ring) -> None:
    """Map RAM, answer "ready" and run rounds until the coordinator is gone; the process's entry."""
    blocks = map_blocks(connection, setup)
    slots: Slots = RingSlots(ring, connection)
    if setup.compression is not None:
        pipeline = adaptive.Ring(setup.count, ring.slots)
        choice = make_choice(setup, setup.compression, pipeline)
        slots = FramedRingSlots(RingSlots(ring, connection), setup.slot_size, choice)
    worker = Worker(setup, blocks, slots)
    send_message(connection, "ready")
    while True:
        worker.run_round(connection.recv())
