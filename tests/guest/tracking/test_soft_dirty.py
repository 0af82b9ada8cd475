"""Soft-dirty bits: law 1 for a kernel that cannot read and remove a mark in one step.

The kernel here is a fake one. `tests/linux` has a real one, in a virtual machine.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.guest.base import Guest
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.tracking import process_memory, soft_dirty
from vmferry.guest.tracking.errors import TrackingError
from vmferry.guest.tracking.process_memory import ProcessMemory, check_process_memory
from vmferry.guest.tracking.soft_dirty import SoftDirtyBits, SoftDirtyMarks, read_soft_dirty
from vmferry.guest.tracking.table import TableTracker, map_table

from tests.guest.tracking.soft_dirty_process import BusyGuest, FakeBits, FakeProcess
from tests.patience import PATIENCE

COUNT = 8


@pytest.fixture(autouse=True)
def no_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that there is no swap, whatever this machine has."""
    monkeypatch.setattr(process_memory, "_swap_is_on", lambda: False)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[FakeProcess]:
    process = FakeProcess(tmp_path)
    yield process
    process.close()


@pytest.fixture
def synthetic() -> Iterator[SyntheticGuest]:
    guest = SyntheticGuest.parse("1M")
    yield guest
    guest.close()


@contextmanager
def marks_of(guest: BusyGuest, bits: SoftDirtyBits) -> Iterator[SoftDirtyMarks]:
    addresses = [guest.address(block.name) for block in guest.blocks]
    marks = SoftDirtyMarks(bits, addresses, guest.blocks)
    try:
        yield marks
    finally:
        marks.close()


def trackers(marks: SoftDirtyMarks, guest: Guest) -> list[TableTracker]:
    """Return what a worker has, which maps the table by its descriptor."""
    counts = [block.length // block.page_size for block in guest.blocks]
    return [TableTracker(part) for part in map_table(marks.table, counts)]


def take(tracker: TableTracker, first: int, end: int) -> list[int]:
    return (first + np.flatnonzero(tracker.take_dirty(first, end))).tolist()


def test_written_between_reading_and_removing(process: FakeProcess) -> None:
    """Broken (law 1): such a write would be in no round. The guest is held meanwhile."""
    guest = BusyGuest(process, ram=COUNT)
    guest.resume()
    with marks_of(guest, FakeBits(process, lambda: guest.write("ram", 3, 7))) as marks:
        (tracker,) = trackers(marks, guest)
        take(tracker, 0, COUNT)
        marks.collect(guest)
        assert guest.refused
        assert take(tracker, 0, COUNT) == []
        assert guest.running
    guest.close()


def test_without_holding_a_write_is_lost(process: FakeProcess) -> None:
    """Broken: the other tests here would prove nothing, as their fake could not break law 1."""

    class NotHeld(BusyGuest):
        @contextmanager
        def held(self) -> Iterator[None]:
            yield

    guest = NotHeld(process, ram=COUNT)
    guest.resume()
    left = iter([False, True, False])

    def meanwhile() -> None:
        if next(left, False):
            guest.write("ram", 3, 7)

    with marks_of(guest, FakeBits(process, meanwhile)) as marks:
        (tracker,) = trackers(marks, guest)
        take(tracker, 0, COUNT)
        marks.collect(guest)
        marks.collect(guest)
        assert 3 not in take(tracker, 0, COUNT)
        assert guest.memory("ram")[3 * 4096] == 7
    guest.close()


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_receiver_converges(data: st.DataObject) -> None:
    """Broken (law 1): with writes at any moment, and workers that take one after another, a last
    round of the paused guest would leave a page old."""
    with TemporaryDirectory() as folder:
        process = FakeProcess(Path(folder))
        guest = BusyGuest(process, first=COUNT, second=3)
        values = st.tuples(
            st.sampled_from([("first", COUNT), ("second", 3)]), st.integers(0, 9), st.integers(1, 3)
        )

        def guest_writes() -> None:
            for (name, count), page, value in data.draw(st.lists(values, max_size=4)):
                guest.write(name, page % count, value)

        received = {name: np.full((count, 4096), 0xEE) for name, count in sizes_of(guest)}
        guest.resume()
        with marks_of(guest, FakeBits(process, guest_writes)) as marks:
            workers = [trackers(marks, guest) for _ in range(data.draw(st.integers(1, 3)))]
            rounds = data.draw(st.integers(0, 3))
            for number in range(rounds + 1):
                if number == rounds:
                    guest.pause()
                marks.collect(guest)
                guest_writes()
                for chunk in range(COUNT):
                    own = workers[chunk % len(workers)]
                    for block, tracker in zip(guest.blocks, own, strict=True):
                        numbers = take(tracker, chunk, min(chunk + 1, pages_in(block.length)))
                        guest_writes()
                        pages = guest.memory(block.name).reshape(-1, 4096)
                        received[block.name][numbers] = pages[numbers]
                        guest_writes()
        for name, _ in sizes_of(guest):
            assert (received[name] == guest.memory(name).reshape(-1, 4096)).all()
        process.close()
        guest.close()


def sizes_of(guest: BusyGuest) -> list[tuple[str, int]]:
    return [(block.name, pages_in(block.length)) for block in guest.blocks]


def pages_in(length: int) -> int:
    return length // 4096


def test_nobody_hears_that_the_guest_is_held(process: FakeProcess) -> None:
    """Broken: clients of a service would hear STOP and RESUME in each round."""
    guest = BusyGuest(process, ram=COUNT)
    heard: list[str] = []
    guest.resume()
    guest.add_listener(heard.append)
    with guest.held():
        assert not guest.running
    assert guest.running
    with pytest.raises(OSError, match="inside"), guest.held():
        raise OSError("inside")
    assert guest.running
    assert heard == []
    guest.pause()
    with guest.held():
        pass
    assert not guest.running
    assert heard == ["stop"]
    guest.close()


def test_synthetic_guest_is_held(synthetic: SyntheticGuest) -> None:
    """Broken: it would write while its bits are read, or not go on, or run against a command."""
    heard: list[str] = []
    synthetic.add_listener(heard.append)
    with synthetic.held():
        before = synthetic.digest()
        assert synthetic.counter() == synthetic.counter()
        assert synthetic.digest() == before
    assert heard == []
    synthetic.pause()
    with synthetic.held():
        pass
    assert not synthetic.running


@pytest.mark.parametrize("page_size", [256, 1024, 4096, 16384, 65536])
def test_other_page_sizes(process: FakeProcess, page_size: int) -> None:
    """Broken: where a guest's page is not one of this system's, writes beside it would be lost."""
    guest = BusyGuest(process, page_size=page_size, ram=65)
    guest.resume()
    with marks_of(guest, FakeBits(process)) as marks:
        (tracker,) = trackers(marks, guest)
        take(tracker, 0, 65)
        for page in (33, 64):
            guest.write("ram", page, 1)
        assert marks.dirty_bytes() % page_size == 0
        marks.collect(guest)
        assert {33, 64} <= set(take(tracker, 0, 65))
        guest.write("ram", 2, 1)
        marks.collect(guest)
        together = max(1, 4096 // page_size)
        first = 2 // together * together
        assert take(tracker, 0, 65) == list(range(first, first + together))
    guest.close()


def test_dirty_pages_are_counted(process: FakeProcess) -> None:
    """Broken: a migration would not know what is dirty before it sends it."""
    guest = BusyGuest(process, ram=COUNT, rom=3)
    guest.resume()
    with marks_of(guest, FakeBits(process)) as marks:
        assert marks.dirty_bytes() == (COUNT + 3) * 4096
        first, second = trackers(marks, guest)
        take(first, 0, COUNT)
        assert marks.dirty_bytes() == 3 * 4096
        take(second, 0, 3)
        guest.write("ram", 5, 1)
        marks.collect(guest)
        guest.write("ram", 5, 2)
        guest.write("rom", 0, 2)
        assert marks.dirty_bytes() == 2 * 4096
        assert np.flatnonzero(first.chunks_to_take(3)).tolist() == [1]
    guest.close()


def test_many_pages(process: FakeProcess) -> None:
    """Broken: what does not fit into one reading would be lost."""
    count = 70_001
    guest = BusyGuest(process, ram=count)
    guest.resume()
    with marks_of(guest, FakeBits(process)) as marks:
        (tracker,) = trackers(marks, guest)
        take(tracker, 0, count)
        pages = [0, 65_535, 65_536, 70_000]
        for page in pages:
            guest.write("ram", page, 1)
        marks.collect(guest)
        assert take(tracker, 0, count) == pages
    guest.close()


def test_marks_that_cannot_be_removed(process: FakeProcess) -> None:
    """Broken: memory of a kind that the kernel does not mark would seem clean or dirty for ever."""

    class Stuck(FakeBits):
        def clear(self) -> None:
            pass

    guest = BusyGuest(process, ram=COUNT)
    guest.resume()
    guest.write("ram", 1, 1)
    with marks_of(guest, Stuck(process)) as marks:
        with pytest.raises(TrackingError, match="does not remove the marks"):
            marks.check(guest)
        assert guest.running
    guest.close()


def test_kernel_without_soft_dirty(
    synthetic: SyntheticGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: without bits nothing would ever seem dirty."""
    monkeypatch.setattr(soft_dirty, "kernel_has_soft_dirty", lambda: False)
    with pytest.raises(TrackingError, match="no soft-dirty bits"):
        read_soft_dirty(synthetic.process_memory(), synthetic)


def test_one_migration_at_a_time(synthetic: SyntheticGuest) -> None:
    """Broken: bits are removed from the whole process, so one migration would lose the other's."""
    bits = SoftDirtyBits(f"/proc/{synthetic.pid}")
    with pytest.raises(TrackingError, match="another migration"):
        SoftDirtyBits(f"/proc/{synthetic.pid}")
    bits.close()
    SoftDirtyBits(f"/proc/{synthetic.pid}").close()


def test_dead_guest_is_an_error(synthetic: SyntheticGuest) -> None:
    """Broken: a guest that died would seem to have nothing more to send."""
    bits = SoftDirtyBits(f"/proc/{synthetic.pid}")
    os.kill(synthetic.pid, signal.SIGKILL)
    assert synthetic.death_fd is not None
    assert select.select([synthetic.death_fd], [], [], PATIENCE)[0]
    with pytest.raises(TrackingError, match="the guest's process died"):
        bits.read(1 << 30, 1)
    assert synthetic._process is not None
    synthetic._process.wait()
    with pytest.raises(TrackingError, match="the guest's process died"):
        bits.clear()
    bits.close()


def test_memory_of_a_guest_is_found(synthetic: SyntheticGuest) -> None:
    """Broken: no guest could be tracked."""
    memory = synthetic.process_memory()
    assert memory.pid == synthetic.pid
    check_process_memory(memory, synthetic.blocks)


def test_wrong_address_is_refused(synthetic: SyntheticGuest) -> None:
    """Broken: a guest that says a wrong address would lose all that it writes."""
    memory = synthetic.process_memory()
    ram, rom = memory.addresses
    for wrong in ((ram + 4096, rom), (ram - 4096, rom), (rom, ram), (1 << 40, rom)):
        with pytest.raises(TrackingError, match="does not have RAM block"):
            check_process_memory(ProcessMemory(memory.pid, wrong), synthetic.blocks)


def test_memory_that_loses_marks_is_refused(
    synthetic: SyntheticGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: pages that leave the page table would seem clean."""
    memory = synthetic.process_memory()
    with monkeypatch.context() as patch:
        patch.setattr(process_memory, "_swap_is_on", lambda: True)
        with pytest.raises(TrackingError, match=r"in swap; lock the guest's memory"):
            check_process_memory(memory, synthetic.blocks)
    with monkeypatch.context() as patch:
        patch.setattr(process_memory, "_TMPFS", 0)
        with pytest.raises(TrackingError, match="not in memory of small pages"):
            check_process_memory(memory, synthetic.blocks)


def test_process_that_is_gone(synthetic: SyntheticGuest) -> None:
    """Broken: a traceback instead of one line."""
    gone = ProcessMemory(2**22 + 1, (0, 0))
    with pytest.raises(TrackingError, match="smaps cannot be read: No such file"):
        check_process_memory(gone, synthetic.blocks)
    with pytest.raises(TrackingError, match="pagemap cannot be opened: No such file"):
        SoftDirtyBits(f"/proc/{gone.pid}")
