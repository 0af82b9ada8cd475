"""All dirty trackers, above all law 1: what is remembered is what went on the wire."""

from __future__ import annotations

import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.guest.open import open_guest
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.tracking.digests import DigestTracker
from vmferry.guest.tracking.errors import TrackingError
from vmferry.guest.tracking.marks import MarkTracker, mark_writes, marked_bytes
from vmferry.guest.tracking.tracker import Tracker

from tests.patience import PATIENCE

PAGE_SIZE = 4096
COUNT = 8

Ram = npt.NDArray[np.uint8]
Made = tuple[Ram, Tracker]
Make = Callable[..., AbstractContextManager[Made]]


def fill(ram: Ram) -> None:
    """Write different content to each page."""
    ram[:] = np.random.default_rng(3).integers(1, 256, ram.shape, np.uint8)


@contextmanager
def digests(count: int = COUNT, page_size: int = PAGE_SIZE) -> Iterator[Made]:
    ram = np.zeros((count, page_size), np.uint8)
    fill(ram)
    yield ram, DigestTracker(count, page_size)


@contextmanager
def marks(count: int = COUNT, page_size: int = PAGE_SIZE) -> Iterator[Made]:
    flat = mapped(count * page_size)
    ram = flat.reshape(count, page_size)
    fill(ram)
    with ExitStack() as stack:
        found = mark_writes([flat])
        stack.callback(found.close)
        yield ram, MarkTracker(found.pagemap, found.addresses[0], count, page_size)


def mapped(length: int) -> Ram:
    """Return shared memory as a guest has it."""
    fd = os.memfd_create("ram")
    os.ftruncate(fd, length)
    ram = np.frombuffer(mmap.mmap(fd, length), np.uint8)
    os.close(fd)
    return ram


KINDS = pytest.mark.parametrize("make", [digests, marks])


def dirty(ram: Ram, tracker: Tracker, first: int = 0, end: int | None = None) -> list[int]:
    """Take, and return the numbers of the pages that must be sent."""
    end = len(ram) if end is None else end
    taken = tracker.take_dirty(first, end)
    changed = tracker.changed(ram[first:end], first, taken)
    return (first + np.flatnonzero(changed)).tolist()


def on_the_wire(pages: Ram) -> Ram:
    """Return copies behind 8 bytes of header each, as a strided view, like those in a slot."""
    slot = np.zeros((len(pages), 8 + pages.shape[1]), np.uint8)
    slot[:, 8:] = pages
    return slot[:, 8:]


@KINDS
def test_all_is_dirty_until_taken(make: Make) -> None:
    """Broken: round 0 would leave pages out."""
    with make() as (ram, tracker):
        assert tracker.chunks_to_take(3).tolist() == [True, True, True]
        assert dirty(ram, tracker, 2, 4) == [2, 3]
        tracker.sent(np.arange(2, 4), on_the_wire(ram[2:4]))
        assert dirty(ram, tracker) == [0, 1, 4, 5, 6, 7]
        tracker.sent(np.array([0, 1, 4, 5, 6, 7]), on_the_wire(ram[[0, 1, 4, 5, 6, 7]]))
        assert dirty(ram, tracker) == []


@KINDS
def test_write_between_take_and_copy_is_found_again(make: Make) -> None:
    """Broken (law 1): a page A, sent as B because the guest wrote meanwhile, and A again
    afterwards would be taken for clean, and the destination would keep B."""
    with make() as (ram, tracker):
        numbers = np.arange(COUNT)
        dirty(ram, tracker)
        tracker.sent(numbers, on_the_wire(ram))
        a = ram[5].copy()
        ram[5, 0] ^= 0xFF  # Seen dirty ...
        assert dirty(ram, tracker) == [5]
        ram[5, 1] ^= 0xFF  # ... written again before the copy is taken, ...
        copies = on_the_wire(ram[5:6])
        ram[5] = a  # ... and after it, before the tracker hears of the copy.
        tracker.sent(numbers[5:6], copies)
        assert dirty(ram, tracker) == [5]


@KINDS
def test_zero_that_was_written_meanwhile_is_found_again(
    make: Make,
) -> None:
    """Broken (law 1): a page sent as zero that is not zero any more would be taken for clean."""
    with make() as (ram, tracker):
        ram[:4] = 0
        taken = tracker.take_dirty(0, COUNT)
        assert tracker.changed_to_zero(0, taken).all()
        ram[4:] = 1
        tracker.sent_zero(np.arange(COUNT))
        assert dirty(ram, tracker) == [4, 5, 6, 7]


@pytest.mark.parametrize("make", [digests, marks])
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_receiver_converges(make: Make, data: st.DataObject) -> None:
    """Broken: with writes at any moment, a last round on a paused guest would leave a page old."""
    with make() as (ram, tracker):
        received = np.full_like(ram, 0xEE)
        values = st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(0, 2)), max_size=6)

        def guest_writes() -> None:
            for page, value in data.draw(values):
                ram[page] = value

        for _ in range(data.draw(st.integers(0, 3))):
            chunks = tracker.chunks_to_take(4)
            guest_writes()
            for chunk in np.flatnonzero(chunks).tolist():
                numbers = np.array(dirty(ram, tracker, 4 * chunk, 4 * chunk + 4), np.intp)
                guest_writes()
                copies = on_the_wire(ram[numbers])
                guest_writes()
                tracker.sent(numbers, copies)
                received[numbers] = copies
        for chunk in np.flatnonzero(tracker.chunks_to_take(4)).tolist():
            last = dirty(ram, tracker, 4 * chunk, 4 * chunk + 4)
            received[last] = ram[last]
        assert (received == ram).all()


@pytest.mark.parametrize("page_size", [256, 1024, 4096, 16384, 65536])
def test_marks_of_other_page_sizes(page_size: int) -> None:
    """Broken: where a guest's page is not one of this system's, writes beside it would be lost."""
    with marks(64, page_size) as (ram, tracker):
        dirty(ram, tracker)
        assert dirty(ram, tracker) == []
        ram[33, 100] ^= 1
        together = max(1, mmap.PAGESIZE // page_size)
        first = 33 // together * together
        # A take of a part of a system page leaves the rest of it dirty.
        assert dirty(ram, tracker, first, first + 1) == [first]
        assert dirty(ram, tracker) == list(range(first + 1, first + together))
        ram[63, -1] ^= 1
        assert 63 in dirty(ram, tracker, 0, 64)


def test_chunks_with_marks() -> None:
    """Broken: a round would read all of memory to find little, or miss a chunk."""
    with marks(100) as (ram, tracker):
        dirty(ram, tracker)
        assert not tracker.chunks_to_take(7).any()
        ram[[13, 14, 50, 99], 5] ^= 1
        assert np.flatnonzero(tracker.chunks_to_take(7)).tolist() == [1, 2, 7, 14]
        assert dirty(ram, tracker) == [13, 14, 50, 99]


def test_many_runs() -> None:
    """Broken: what does not fit into one answer of the kernel would be lost."""
    with marks(20_001) as (ram, tracker):
        dirty(ram, tracker)
        ram[::2, 7] ^= 1
        assert tracker.chunks_to_take(512).all()
        assert dirty(ram, tracker) == list(range(0, 20_001, 2))
        assert dirty(ram, tracker) == []


def test_what_the_kernel_writes_is_marked() -> None:
    """Broken: what a guest reads from a file or a socket into its memory would not be sent."""
    with marks() as (ram, tracker), open("/dev/zero", "rb", buffering=0) as zeros:
        dirty(ram, tracker)
        assert zeros.readinto(memoryview(ram[3])) == PAGE_SIZE
        assert dirty(ram, tracker) == [3]


def test_memory_that_does_not_exist_yet() -> None:
    """Broken: the first write to memory that was never touched would not be sent."""
    flat = mapped(4096 * PAGE_SIZE)
    found = mark_writes([flat])
    try:
        tracker = MarkTracker(found.pagemap, found.addresses[0], 4096, PAGE_SIZE)
        assert tracker.take_dirty(0, 4096).all()
        assert not tracker.take_dirty(0, 4096).any()
        flat[3000 * PAGE_SIZE] = 1
        assert np.flatnonzero(tracker.take_dirty(0, 4096)).tolist() == [3000]
    finally:
        found.close()


def test_pages_that_leave_the_page_table() -> None:
    """Broken: where memory is short, a written page would lose its mark, or all be sent again."""
    flat = mapped(1024 * PAGE_SIZE)
    flat[:] = 1
    mapping = flat.base.obj if isinstance(flat.base, memoryview) else flat.base
    assert isinstance(mapping, mmap.mmap)
    found = mark_writes([flat])
    try:
        tracker = MarkTracker(found.pagemap, found.addresses[0], 1024, PAGE_SIZE)
        tracker.take_dirty(0, 1024)
        flat[[5 * PAGE_SIZE, 700 * PAGE_SIZE]] = 2
        # The pages stay in the file, as where the kernel takes them away to swap them.
        mapping.madvise(mmap.MADV_DONTNEED)
        assert np.flatnonzero(tracker.take_dirty(0, 1024)).tolist() == [5, 700]
        flat[6 * PAGE_SIZE] = 2
        assert np.flatnonzero(tracker.take_dirty(0, 1024)).tolist() == [6]
    finally:
        found.close()


def test_marks_are_counted() -> None:
    """Broken: a migration would not know what is dirty before it reads it."""
    blocks = [mapped(16 * PAGE_SIZE), mapped(3 * PAGE_SIZE)]
    for block in blocks:
        block[:] = 1
    lengths = [len(block) for block in blocks]
    found = mark_writes(blocks)
    try:
        assert marked_bytes(found, lengths) == 19 * PAGE_SIZE
        for address, block in zip(found.addresses, blocks, strict=True):
            count = len(block) // PAGE_SIZE
            MarkTracker(found.pagemap, address, count, PAGE_SIZE).take_dirty(0, count)
        assert marked_bytes(found, lengths) == 0
        blocks[0][:5] = 2
        blocks[1][-5:] = 2
        assert marked_bytes(found, lengths) == 2 * PAGE_SIZE
    finally:
        found.close()


def test_closed_marks_are_an_error() -> None:
    """Broken: who asks for marks that are no longer made would hear that nothing is dirty."""
    flat = mapped(4 * PAGE_SIZE)
    found = mark_writes([flat])
    os.close(found.userfaultfd)
    tracker = MarkTracker(found.pagemap, found.addresses[0], 4, PAGE_SIZE)
    with pytest.raises(TrackingError, match="not marked any more"):
        tracker.take_dirty(0, 4)
    os.close(found.pagemap)


def test_marks_of_a_dead_guest_are_an_error() -> None:
    """Broken: a guest that died would seem to have nothing more to send, or show a traceback."""
    guest = open_guest("synthetic:1M")
    assert isinstance(guest, SyntheticGuest)
    found = guest.mark_writes()
    try:
        os.kill(guest.pid, signal.SIGKILL)
        assert guest.death_fd is not None
        assert select.select([guest.death_fd], [], [], PATIENCE)[0]
        with pytest.raises(TrackingError, match="the guest's process died"):
            marked_bytes(found, [block.length for block in guest.blocks])
    finally:
        found.close()
        guest.close()


UNREADABLE = """
import ctypes, mmap, os
import numpy as np
from vmferry.guest.tracking.errors import TrackingError
from vmferry.guest.tracking.marks import mark_writes
ram = np.frombuffer(mmap.mmap(-1, 1 << 16), np.uint8)
if os.geteuid() == 0:
    os.setuid(65534)
PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
try:
    mark_writes([ram])
except TrackingError as error:
    print(error)
"""


def test_process_that_may_not_read_its_pagemap() -> None:
    """Broken: the guest's process would end by a traceback, instead of going on with digests."""
    ran = subprocess.run(
        [sys.executable, "-c", UNREADABLE], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "/proc/self/pagemap cannot be read: Permission denied\n"
