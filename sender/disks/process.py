"""Scan the disks in a process of its own, round by round, as the coordinator commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from ...guest.disks.image import Disk
from ...guest.disks.marks import DiskMarks
from ...protocol.formats.zstd import compressed_bound
from ...protocol.wire.block import BLOCK_SIZE
from ...transport import adaptive
from ...transport.compression import COMPRESSION_COUNTERS, Compression, LinkMeter
from ...transport.counters import Counters
from ...transport.crew import reporting
from ...transport.process import receive_fd, send_message
from ...transport.ring import Ring
from ..compressed_sinks import Choice, FramedRingSink
from ..sinks import RingSink, Sink
from ..sources import StartRound
from .chunks import ChunkTracker, DigestedChunks, MarkedChunks
from .writer import SLOT_SIZE, ChunkWriter, ImageError

DISK_COUNTERS = ("scanned", "found", "on_wire", *COMPRESSION_COUNTERS)
"""Counters of the process: bytes of disks gone over, and found to be sent; bytes of records."""
RING_SLOTS = 8
RING_SLOT_SIZE = compressed_bound(SLOT_SIZE)


@dataclass(frozen=True)
class DiskSetup:
    """The setup of the process; the descriptors of the images follow, in the order of `disks`.

    `running`: the guest runs, so its writes are tracked: by `marks`, or else by digests. `sent` has
    the counters of the transport process.
    """

    disks: tuple[tuple[str, int, str], ...]
    """Name, size in bytes, and path of each disk."""
    section_id: int
    counters: Counters
    sent: Counters
    limits: Counters
    running: bool
    marks: DiskMarks | None
    zero_blocks: bool
    compression: Compression | None

    def receive(self, connection: Connection) -> tuple[Disk, ...]:
        """Return the disks with the descriptors that follow the setup."""
        return tuple(
            Disk(name, size, receive_fd(connection), path) for name, size, path in self.disks
        )

    def tracker(self, disks: Sequence[Disk]) -> ChunkTracker:
        """Return what finds the chunks that changed."""
        if self.running and self.marks is None:
            return DigestedChunks(disks)
        return MarkedChunks(disks, self.marks)

    def sink(self, connection: Connection, ring: Ring) -> Sink:
        """Return the sink of the records."""
        sink = RingSink(ring, connection)
        if self.compression is None:
            return sink
        choose = adaptive.Adaptive(adaptive.Ring(1, ring.slots), self.compression.levels)
        choice = Choice(choose, self.counters, LinkMeter(self.sent, self.limits))
        return FramedRingSink(sink, SLOT_SIZE, choice)


class DiskScanner:
    """The scanner of all disks, round by round."""

    def __init__(
        self,
        disks: Sequence[Disk],
        tracker: ChunkTracker,
        writer: ChunkWriter,
        counters: Counters,
    ) -> None:
        self._disks = disks
        self._tracker = tracker
        self._writer = writer
        self._counters = counters
        self._total = sum(disk.size or 0 for disk in disks)
        self._percent = -1

    def run_round(self, command: StartRound) -> None:
        """Send every chunk that changed since it was last sent.

        Raises ImageError, and EOFError when the coordinator stops the round.
        """
        for number, disk in enumerate(self._disks):
            # Law 1: what is written from here on is marked again.
            taken = self._tracker.take(number)
            self._counters.add("scanned", _bytes(disk, ~taken))
            for chunk in np.flatnonzero(taken).tolist():
                self._writer.check()
                self._send(number, disk, chunk)
                if not command.number:
                    self._tell_progress()
        self._writer.end_round(command.number)

    def _send(self, number: int, disk: Disk, chunk: int) -> None:
        start = chunk * BLOCK_SIZE
        size = min(BLOCK_SIZE, (disk.size or 0) - start)
        copy = self._writer.read(disk, start)
        if self._tracker.changed(number, chunk, copy):
            self._counters.add("on_wire", self._writer.send(disk, start, copy))
            self._counters.add("found", size)
        self._counters.add("scanned", size)

    def _tell_progress(self) -> None:
        """Send how much of the first round is done, in percent below 100, when that changes."""
        percent = min(99, 100 * self._counters["scanned"] // max(self._total, 1))
        if percent != self._percent:
            self._percent = percent
            self._writer.progress(percent)


def _bytes(disk: Disk, chunks: npt.NDArray[np.bool_]) -> int:
    """Return the size of these chunks of the disk, of which the last one may be shorter."""
    size = int(np.count_nonzero(chunks)) * BLOCK_SIZE
    return size - (len(chunks) * BLOCK_SIZE - (disk.size or 0) if chunks[-1] else 0)


def run_disks(connection: Connection, setup: DiskSetup, ring: Ring) -> None:
    """Take the images, answer "ready" and run rounds until the coordinator is gone."""
    disks = setup.receive(connection)
    sink = setup.sink(connection, ring)
    writer = ChunkWriter(sink, setup.section_id, zero_blocks=setup.zero_blocks)
    scanner = DiskScanner(disks, setup.tracker(disks), writer, setup.counters)
    send_message(connection, "ready")
    with reporting(connection, ImageError):
        while True:
            scanner.run_round(connection.recv())
