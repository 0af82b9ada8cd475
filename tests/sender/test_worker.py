"""A guest that writes between the look at a page and its digest (law 1)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from vmferry.guest.mapping import map_block
from vmferry.guest.parts import RamBlock
from vmferry.guest.tracking.digests import DigestTracker
from vmferry.guest.tracking.marks import MarkTracker, mark_writes
from vmferry.guest.tracking.tracker import Tracker
from vmferry.sender.chunks import MappedBlock
from vmferry.sender.record_writer import slot_size
from vmferry.sender.share import Share
from vmferry.sender.sources import StartRound
from vmferry.sender.worker import WORKER_COUNTERS, Worker
from vmferry.transport.counters import Counters

from tests.sender.interrupted import InterruptedWriter

PAGE_SIZE = 4096


class Buffer:
    """Sink that throws away what is put into it."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(slot_size(PAGE_SIZE)))

    def acquire(self) -> memoryview:
        return self._buffer

    def publish(self, length: int) -> None:
        pass

    def end_round(self, number: int) -> None:
        pass

    def check(self) -> None:
        pass


@pytest.fixture(params=["digests", "marks"])
def block(request: pytest.FixtureRequest) -> Iterator[MappedBlock]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 4 * PAGE_SIZE)
    ram = RamBlock("ram", 4 * PAGE_SIZE, PAGE_SIZE, fd)
    flat = map_block(ram)
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        tracker: Tracker = DigestTracker(4, PAGE_SIZE)
        if request.param == "marks":
            marks = mark_writes([flat])
            stack.callback(marks.close)
            tracker = MarkTracker(marks.pagemap, marks.addresses[0], 4, PAGE_SIZE)
        yield MappedBlock(ram, b"ram", PAGE_SIZE, flat.reshape(-1, PAGE_SIZE), tracker)


@pytest.fixture
def writer() -> InterruptedWriter:
    return InterruptedWriter(Buffer(), 2)


@pytest.fixture
def worker(block: MappedBlock, writer: InterruptedWriter) -> Iterator[Worker]:
    counters = Counters.create(WORKER_COUNTERS)
    limits = Counters.create(("xbzrle_cache",))
    yield Worker(Share(0, 1), [block], writer, counters, limits)
    counters.close()
    limits.close()


# Pages that are not in a row are gathered.
@pytest.mark.parametrize(("pages", "content"), [([1], 0), ([1], 1), ([0, 2], 1)])
def test_write_after_the_copy_is_found(
    block: MappedBlock, worker: Worker, writer: InterruptedWriter, pages: list[int], content: int
) -> None:
    """Broken: what the guest wrote at the wrong moment would never be sent."""
    block.ram[:] = 3
    chosen = np.array(pages)
    worker.run_round(StartRound(0, tracked=True))
    block.ram[chosen] = content
    writer.behind.then(lambda: block.ram.__setitem__(chosen, 2))
    worker.run_round(StartRound(1, tracked=True))
    before = worker.counters["normal"]
    worker.run_round(StartRound(2, tracked=True))
    assert worker.counters["normal"] - before == len(chosen)
    worker.run_round(StartRound(3, tracked=True))
    assert worker.counters["normal"] - before == len(chosen)


def test_first_write_to_a_hole_is_found(
    block: MappedBlock, worker: Worker, writer: InterruptedWriter
) -> None:
    """Broken: memory that is written while it is found to be untouched would arrive as zero."""
    writer.before.then(lambda: block.ram.__setitem__(2, 7))
    worker.run_round(StartRound(0, tracked=True))
    assert worker.counters["normal"] == 0
    worker.run_round(StartRound(1, tracked=True))
    assert worker.counters["normal"] == 1
