"""Rounds over disks whose guest writes at the worst moments (law 1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from vmferry.guest.disks.image import Disk
from vmferry.guest.disks.marks import DiskMarks
from vmferry.protocol import events
from vmferry.protocol.section_events import DiskBlock, EndOfDisks
from vmferry.protocol.wire.marks import SectionType
from vmferry.sender.disks.chunks import ChunkTracker, DigestedChunks, MarkedChunks
from vmferry.sender.disks.process import DISK_COUNTERS, DiskScanner
from vmferry.sender.disks.writer import SLOT_SIZE, ChunkWriter
from vmferry.sender.sources import StartRound
from vmferry.transport.counters import Counters

from tests import streams
from tests.disks import MIB

OLD, NEW = b"old" * 100, b"new" * 100
SECTION_ID = 9


class Slots:
    """A sink that keeps what is published."""

    def __init__(self) -> None:
        self._slot = memoryview(bytearray(SLOT_SIZE))
        self._pieces: list[bytes] = []

    def acquire(self) -> memoryview:
        """Return the slot."""
        return self._slot

    def publish(self, length: int) -> None:
        """Keep a piece of the stream."""
        self._pieces.append(bytes(self._slot[:length]))

    def end_round(self, number: int) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""

    def blocks(self) -> list[tuple[int, bytes]]:
        """Return number and first bytes of each chunk that was sent since the last call."""
        section = events.IterativeSection(0, SectionType.START, SECTION_ID, "block", 0, 1)
        begun = [*streams.opening(), section, EndOfDisks(0), events.Footer(0, SECTION_ID)]
        ends = streams.to_bytes(streams.closing())
        whole = streams.to_bytes(begun) + b"".join(self._pieces) + ends
        self._pieces = []
        found = [event for event in streams.read(whole) if isinstance(event, DiskBlock)]
        return [(event.sector // 2048, (event.data or b"")[:300]) for event in found]


class Guest:
    """A disk of three chunks whose guest writes when it is told to, and marks then."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(OLD.ljust(3 * MIB, b"."))
        self.fd = os.open(path, os.O_RDWR)
        self.disk = Disk("disk0", 3 * MIB, self.fd, str(path))
        self.marks = DiskMarks.create([3 * MIB])

    def write(self, chunk: int, data: bytes = NEW) -> None:
        """Write the beginning of a chunk."""
        os.pwrite(self.fd, data, chunk * MIB)
        self.marks.written(0, chunk * MIB, chunk * MIB + len(data))

    def close(self) -> None:
        """Close the image and the marks."""
        os.close(self.fd)
        self.marks.close()


class Interrupted(ChunkWriter):
    """A writer that calls `between` once, between the reading of a chunk and its sending."""

    between: Callable[[], None] | None = None

    def read(self, disk: Disk, start: int) -> memoryview | None:
        """Return the copy of a chunk, which the guest then changes."""
        copy = super().read(disk, start)
        between, self.between = self.between, None
        if between is not None:
            between()
        return copy


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with closing(Guest(tmp_path / "disk")) as found:
        yield found


@pytest.fixture(params=["marks", "digests"])
def tracker(request: pytest.FixtureRequest, guest: Guest) -> ChunkTracker:
    if request.param == "digests":
        return DigestedChunks([guest.disk])
    return MarkedChunks([guest.disk], guest.marks)


def test_what_is_written_meanwhile_comes_again(guest: Guest, tracker: ChunkTracker) -> None:
    """Broken: what a guest writes while a chunk is sent would never reach the destination."""
    slots = Slots()
    writer = Interrupted(slots, SECTION_ID, zero_blocks=True)
    scanner = DiskScanner([guest.disk], tracker, writer, Counters.create(DISK_COUNTERS))
    writer.between = lambda: guest.write(0)
    scanner.run_round(StartRound(0, tracked=True))
    assert [number for number, _ in slots.blocks()] == [0, 1, 2]
    scanner.run_round(StartRound(1, tracked=True))
    assert slots.blocks() == [(0, NEW)]
    scanner.run_round(StartRound(2, tracked=False))
    assert slots.blocks() == []


def test_zeros_come_again_as_zeros(guest: Guest, tracker: ChunkTracker) -> None:
    """Broken: what a guest has erased would come back at the destination."""
    slots = Slots()
    writer = ChunkWriter(slots, SECTION_ID, zero_blocks=True)
    scanner = DiskScanner([guest.disk], tracker, writer, Counters.create(DISK_COUNTERS))
    scanner.run_round(StartRound(0, tracked=True))
    slots.blocks()
    guest.write(1, bytes(MIB))
    scanner.run_round(StartRound(1, tracked=False))
    assert slots.blocks() == [(1, b"")]
