"""A guest that writes between the look at a page and its digest (law 1)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from vmferry.guest.base import RamBlock, map_block
from vmferry.guest.tracking.digests import DigestTracker
from vmferry.protocol.pages import records
from vmferry.sender.worker import (
    WORKER_COUNTERS,
    MappedBlock,
    StartRound,
    Worker,
    WorkerSetup,
    slot_size,
)
from vmferry.transport.counters import Counters

PAGE_SIZE = 4096


class Buffer:
    """Slots that go nowhere."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(slot_size(PAGE_SIZE)))

    def acquire(self) -> memoryview:
        return self._buffer

    def publish(self, length: int, *, stored: bool = False) -> None:
        pass

    def end_round(self, number: int) -> None:
        pass

    def check(self) -> None:
        pass


@pytest.fixture
def block() -> Iterator[MappedBlock]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 4 * PAGE_SIZE)
    ram = RamBlock("ram", 4 * PAGE_SIZE, PAGE_SIZE, fd)
    array = map_block(ram).reshape(-1, PAGE_SIZE)
    yield MappedBlock(ram, b"ram", PAGE_SIZE, array, DigestTracker(4, PAGE_SIZE))
    os.close(fd)


@pytest.mark.parametrize(
    ("packs", "content"), [("pack_zero", 0), ("pack_plain", 1), ("pack_plain_gather", 1)]
)
def test_write_after_the_copy_is_found(
    block: MappedBlock, packs: str, content: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: what the guest wrote at the wrong moment would never be sent."""
    block.ram[:] = 3
    # Pages that are not in a row are gathered.
    chosen = np.array([0, 2] if packs == "pack_plain_gather" else [1])
    counters = Counters.create(WORKER_COUNTERS)
    limits = Counters.create(("xbzrle_cache",))
    setup = WorkerSetup(0, 1, 2, slot_size(PAGE_SIZE), counters, counters, limits, ())
    worker = Worker(setup, [block], Buffer())
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
    before = counters["normal"]
    worker.run_round(StartRound(2, tracked=True))
    assert counters["normal"] - before == len(chosen)
    worker.run_round(StartRound(3, tracked=True))
    assert counters["normal"] - before == len(chosen)
    counters.close()
    limits.close()
