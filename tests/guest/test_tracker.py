"""The digest tracker, above all law 1: what is remembered is what went on the wire."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.guest.tracker import DigestTracker, page_digests
from xxhash import xxh3_128_digest

PAGE_SIZE = 4096
COUNT = 8


def make_ram() -> npt.NDArray[np.uint8]:
    """Pages that differ."""
    return np.random.default_rng(3).integers(1, 256, (COUNT, PAGE_SIZE), np.uint8)


def on_the_wire(pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Copies behind 8 bytes of header each: a strided view, as in a slot."""
    slot = np.zeros((len(pages), 8 + PAGE_SIZE), np.uint8)
    slot[:, 8:] = pages
    return slot[:, 8:]


def test_all_is_dirty_until_sent() -> None:
    """Broken: round 0 would leave pages out."""
    ram, tracker = make_ram(), DigestTracker(COUNT, PAGE_SIZE)
    assert tracker.scan(ram, 0).all()
    tracker.sent(np.arange(2, 4), on_the_wire(ram[2:4]))
    assert tracker.scan(ram, 0).tolist() == [n not in (2, 3) for n in range(COUNT)]
    assert tracker.scan(ram[2:4], 2).tolist() == [False, False]


def test_write_between_scan_and_copy_is_found_again() -> None:
    """Broken (law 1): a page A, sent as B because the guest wrote meanwhile, and A again
    afterwards would be taken for clean, and the destination would keep B."""
    ram, tracker = make_ram(), DigestTracker(COUNT, PAGE_SIZE)
    numbers = np.arange(COUNT)
    tracker.sent(numbers, on_the_wire(ram))
    a = ram[5].copy()
    ram[5, 0] ^= 0xFF  # Seen dirty ...
    assert np.flatnonzero(tracker.scan(ram, 0)).tolist() == [5]
    ram[5, 1] ^= 0xFF  # ... written again before the copy is taken, ...
    copies = on_the_wire(ram[5:6])
    ram[5] = a  # ... and after it, before the tracker hears of the copy.
    tracker.sent(numbers[5:6], copies)
    assert np.flatnonzero(tracker.scan(ram, 0)).tolist() == [5]


def test_zero_that_was_written_meanwhile_is_found_again() -> None:
    """Broken (law 1): a page sent as zero that is not zero any more would be taken for clean."""
    ram, tracker = make_ram(), DigestTracker(COUNT, PAGE_SIZE)
    ram[:4] = 0
    tracker.sent_zero(np.arange(COUNT))
    assert tracker.scan(ram, 0).tolist() == [False] * 4 + [True] * 4


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_receiver_converges(data: st.DataObject) -> None:
    """Broken: with writes at any moment, a last round on a paused guest would leave a page old."""
    ram, tracker = make_ram(), DigestTracker(COUNT, PAGE_SIZE)
    received = np.full_like(ram, 0xEE)
    values = st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(0, 2)), max_size=6)

    def guest_writes() -> None:
        for page, value in data.draw(values):
            ram[page] = value

    for _ in range(data.draw(st.integers(0, 3))):
        dirty = np.flatnonzero(tracker.scan(ram, 0))
        guest_writes()
        copies = on_the_wire(ram[dirty])
        guest_writes()
        tracker.sent(dirty, copies)
        received[dirty] = copies
    dirty = np.flatnonzero(tracker.scan(ram, 0))
    received[dirty] = ram[dirty]
    assert (received == ram).all()


def test_digests_are_xxh3_128() -> None:
    """Broken: digests would not be comparable with those of other programs."""
    ram = make_ram()
    assert page_digests(ram)[3].tobytes() == xxh3_128_digest(ram[3].tobytes())
    assert (page_digests(on_the_wire(ram)) == page_digests(ram)).all()
