"""Put a worker together with what it writes to, in a process of its own or in the transport's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..guest.tracking.errors import TrackingError
from ..protocol.formats import zstd
from ..transport import adaptive
from ..transport.compression import Compression, LinkMeter
from ..transport.counters import Counters
from ..transport.crew import reporting
from ..transport.process import send_message
from ..transport.ring import Ring
from .chunks import MappedBlock, map_blocks
from .compressed_sinks import Choice, FramedDirectSink, FramedRingSink
from .deltas import Deltas
from .record_writer import RecordWriter, slot_size
from .sampler import Sampler
from .share import Share
from .sinks import DirectSink, RingSink, Sink
from .tracking import BY_DIGESTS, WorkerTracking
from .worker import Worker


@dataclass(frozen=True)
class WorkerSetup:
    """The setup of a worker: its share of RAM, and how its pages are written."""

    share: Share
    section_id: int
    counters: Counters
    sent: Counters
    """Counters of the transport process."""
    limits: Counters
    layout: tuple[dict[str, Any], ...]
    tracking: WorkerTracking = BY_DIGESTS
    compression: Compression | None = None
    threads: int = 1
    """Number of threads that compress, if the transport process does what a worker does."""

    @property
    def slot_size(self) -> int:
        """Return the bytes of a slot before it is compressed."""
        return slot_size(self.layout[0]["page_size"])

    def share_of_bandwidth(self) -> int | None:
        """Return the bandwidth that a worker may use who sends on a channel of its own."""
        limit = self.limits["max_bandwidth"]
        return max(1, limit // self.share.count) if limit else None

    def map_blocks(self, connection: Connection) -> list[MappedBlock]:
        """Map all RAM, whose descriptors arrive over `connection`."""
        return map_blocks(connection, self.layout, self.tracking, self.share)

    def choice(self, compression: Compression, pipeline: adaptive.Pipeline) -> Choice:
        """Return the choice of a compression level for one process."""
        choose = adaptive.Adaptive(pipeline, compression.levels)
        return Choice(choose, self.counters, LinkMeter(self.sent, self.limits))

    def worker(self, blocks: list[MappedBlock], sink: Sink) -> Worker:
        """Return a worker whose pages are records in the slots of a sink."""
        page_size = blocks[0].page_size
        writer = RecordWriter(sink, self.section_id)
        deltas = Deltas(writer, page_size, self.counters)
        sampler = Sampler(page_size, self.counters)
        return Worker(
            self.share,
            blocks,
            writer,
            self.counters,
            self.limits,
            deltas=deltas,
            sampler=sampler,
        )


def ring_sink(connection: Connection, setup: WorkerSetup, ring: Ring) -> Sink:
    """Return the sink of a worker process: a ring, compressed by that process if at all."""
    sink = RingSink(ring, connection)
    if setup.compression is None:
        return sink
    pipeline = adaptive.Ring(setup.share.count, ring.slots)
    return FramedRingSink(sink, setup.slot_size, setup.choice(setup.compression, pipeline))


def direct_sink(
    connection: Connection,
    setup: WorkerSetup,
    send: Callable[[memoryview, int], None],
    ended: Callable[[int], None],
) -> Sink:
    """Return the sink of the transport process itself; threads compress, if anybody does.

    `send` and `ended` are those of DirectSink.
    """
    sink = DirectSink(zstd.compressed_bound(setup.slot_size), connection, send, ended)
    if setup.compression is None:
        return sink
    choice = setup.choice(setup.compression, adaptive.Pool(setup.threads, depth=2))
    return FramedDirectSink(sink, setup.slot_size, choice, setup.threads)


def run_worker(connection: Connection, setup: WorkerSetup, ring: Ring) -> None:
    """Map RAM, answer "ready" and run rounds until the coordinator is gone; the process's entry."""
    blocks = setup.map_blocks(connection)
    worker = setup.worker(blocks, ring_sink(connection, setup, ring))
    send_message(connection, "ready")
    with reporting(connection, TrackingError):
        while True:
            worker.run_round(connection.recv())
