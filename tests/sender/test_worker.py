"""A guest that writes between the look at a page and its digest (law 1)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from vmferry.guest.base import RamBlock, is_hole, map_block
from vmferry.guest.tracking.digests import DigestTracker
from vmferry.guest.tracking.marks import MarkTracker, mark_writes
from vmferry.guest.tracking.tracker import Tracker
from vmferry.protocol.pages import records
from vmferry.sender.chunks import MappedBlock
from vmferry.sender.record_writer import RecordWriter, slot_size
from vmferry.sender.worker import WORKER_COUNTERS, Share, StartRound, Worker
from vmferry.transport.counters import Counters

PAGE_SIZE = 4096


class Buffer:
    """Sink that go nowhere."""

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
def worker(block: MappedBlock) -> Iterator[Worker]:
    counters = Counters.create(WORKER_COUNTERS)
    limits = Counters.create(("xbzrle_cache",))
    yield Worker(Share(0, 1), [block], RecordWriter(Buffer(), 2), counters, limits)
    counters.close()
    limits.close()


@pytest.mark.parametrize(
    ("packs", "content"), [("pack_zero", 0), ("pack_plain", 1), ("pack_plain_gather", 1)]
)
def test_write_after_the_copy_is_found(
    block: MappedBlock,
    worker: Worker,
    packs: str,
    content: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken: what the guest wrote at the wrong moment would never be sent."""
    block.ram[:] = 3
    # Pages that are not in a row are gathered.
    chosen = np.array([0, 2] if packs == "pack_plain_gather" else [1])
    worker.run_round(StartRound(0, tracked=True))
    block.ram[chosen] = content
    pack = getattr(records, packs)

    def pack_then_write(*arguments: Any) -> int:
        size: int = pack(*arguments)
        block.ram[chosen] = 2
        return size

    with monkeypatch.context() as patch:
        patch.setattr(records, packs, pack_then_write)
        worker.run_round(StartRound(1, tracked=True))
    before = worker.counters["normal"]
    worker.run_round(StartRound(2, tracked=True))
    assert worker.counters["normal"] - before == len(chosen)
    worker.run_round(StartRound(3, tracked=True))
    assert worker.counters["normal"] - before == len(chosen)


def test_first_write_to_a_hole_is_found(
    block: MappedBlock, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: memory that is written while it is found to be untouched would arrive as zero."""

    def look_then_write(*arguments: Any) -> bool:
        found = is_hole(*arguments)
        block.ram[2] = 7
        return found

    with monkeypatch.context() as patch:
        patch.setattr("vmferry.sender.worker.is_hole", look_then_write)
        worker.run_round(StartRound(0, tracked=True))
    assert worker.counters["normal"] == 0
    worker.run_round(StartRound(1, tracked=True))
    assert worker.counters["normal"] == 1
