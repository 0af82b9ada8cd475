"""The XBZRLE cache: its sizes, its lines, and that they hold what the destination holds (law 2)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmferry.guest.mapping import map_block
from vmferry.guest.parts import RamBlock
from vmferry.guest.tracking.digests import DigestTracker
from vmferry.protocol import events
from vmferry.protocol.pages import xbzrle
from vmferry.protocol.reader import StreamReader
from vmferry.sender.chunks import MappedBlock
from vmferry.sender.page_cache import LIFETIME, CacheSizeError, PageCache, cache_pages
from vmferry.sender.record_writer import slot_size
from vmferry.sender.share import Share
from vmferry.sender.sources import StartRound
from vmferry.sender.worker import WORKER_COUNTERS, Worker
from vmferry.transport.counters import Counters

from tests.sender.interrupted import InterruptedDeltas, InterruptedWriter
from tests.streams import RAM_ID, opening, to_bytes

PAGE = 4096
COUNT = 12
"""Number of pages of RAM."""


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1 << 64, "exceeding address space"),
        ((1 << 30) + 1, "exceeds guest RAM size"),
        (PAGE - 1, "smaller than page size"),
        (0, "smaller than page size"),
    ],
)
def test_impossible_sizes(size: int, message: str) -> None:
    """Broken: a mistyped size would take all memory, or turn XBZRLE off in silence."""
    with pytest.raises(CacheSizeError, match=message):
        cache_pages(size, PAGE, 1 << 30)


def test_sizes_are_powers_of_two() -> None:
    """Broken: the cache would not have the size that is told, or take more than was allowed."""
    assert cache_pages(PAGE, PAGE, 1 << 30) == 1
    assert cache_pages(PAGE * 4 - 1, PAGE, 1 << 30) == 2
    assert cache_pages(1 << 30, PAGE, 1 << 30) == 1 << 18


def _numbers(*numbers: int) -> npt.NDArray[np.intp]:
    return np.array(numbers, np.intp)


def _copies(*fills: int) -> npt.NDArray[np.uint8]:
    return np.repeat(np.array(fills, np.uint8)[:, None], PAGE, axis=1)


def test_a_line_in_use_is_not_given_away() -> None:
    """Broken: two hot pages that share a line would take it from each other all the time."""
    cache = PageCache(4, PAGE)
    cache.insert(_numbers(1, 2), _copies(1, 2), 1)
    for number in range(1, 2 + LIFETIME):
        cache.insert(_numbers(5), _copies(5), number)
        assert cache.holds(_numbers(1, 2, 5)).tolist() == [True, True, False]
    cache.update(_numbers(2), _copies(9), 2 + LIFETIME)
    cache.insert(_numbers(5, 6), _copies(5, 6), 2 + LIFETIME)
    assert cache.holds(_numbers(1, 2, 5, 6)).tolist() == [False, True, True, False]
    assert cache.pages(_numbers(2, 5))[:, 0].tolist() == [9, 5]


def test_two_pages_at_once_for_one_line() -> None:
    """Broken: a line would hold one page's bytes under the other's number."""
    cache = PageCache(4, PAGE)
    cache.insert(_numbers(1, 5, 9), _copies(1, 5, 9), 1)
    (held,) = np.flatnonzero(cache.holds(_numbers(1, 5, 9)))
    assert cache.pages(_numbers(int(held) * 4 + 1))[0, 0] == held * 4 + 1


@pytest.mark.parametrize("lines", [1, 2, 3, 8, 50])
def test_resize_keeps_what_fits(lines: int) -> None:
    """Broken: a page would be found in a line that holds another one's bytes."""
    cache = PageCache(8, PAGE)
    numbers = _numbers(3, 8, 9, 12, 23)
    for age, number in enumerate(numbers):
        cache.insert(_numbers(number), _copies(number), age + 1)
    cache.resize(lines)
    assert len(cache) == lines
    held = numbers[cache.holds(numbers)]
    assert (cache.pages(held)[:, 0] == held).all()
    assert len(held) == len(np.unique(numbers % lines))
    # Of those for one line, that used last.
    assert 23 in held
    cache.resize(0)
    assert not cache.holds(numbers).any()


class Destination:
    """Reads what a worker publishes, and rebuilds RAM."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(slot_size(PAGE)))
        self._reader = StreamReader()
        self.ram = np.zeros((COUNT, PAGE), np.uint8)
        self._reader.feed(to_bytes(opening([events.RamBlock("ram", COUNT * PAGE)])))

    def acquire(self) -> memoryview:
        return self._buffer

    def publish(self, length: int) -> None:
        for event in self._reader.feed(self._buffer[:length]):
            if not isinstance(event, (events.PageRun, events.XbzrleRun)):
                continue
            numbers = (event.offsets // np.uint64(PAGE)).astype(np.intp)
            if isinstance(event, events.XbzrleRun):
                runs = xbzrle.read_run(event, PAGE)
                xbzrle.apply(self.ram, numbers, event.data, runs)
            else:
                self.ram[numbers] = event.fill if event.data is None else event.data

    def end_round(self, number: int) -> None:
        pass

    def check(self) -> None:
        pass


class Source:
    """A worker with RAM and a cache of `lines`, and the destination that it sends to."""

    def __init__(self, lines: int) -> None:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, COUNT * PAGE)
        block = RamBlock("ram", COUNT * PAGE, PAGE, self.fd)
        self.ram = map_block(block).reshape(-1, PAGE)
        self.destination = Destination()
        self.counters = Counters.create(WORKER_COUNTERS)
        self.limits = Counters.create(("xbzrle_cache",))
        self.limits.set("xbzrle_cache", lines)
        mapped = MappedBlock(block, b"ram", PAGE, self.ram, DigestTracker(COUNT, PAGE))
        self.writer = InterruptedWriter(self.destination, RAM_ID)
        self.deltas = InterruptedDeltas(self.writer, PAGE, self.counters)
        self._worker = Worker(
            Share(0, 1), [mapped], self.writer, self.counters, self.limits, deltas=self.deltas
        )
        self._round = 0

    def flip(self, pages: int | list[int], at: int = 100) -> None:
        """Change a byte of these pages; twice, it is what it was."""
        self.ram[pages, at] ^= 0xFF

    def send(self, *, tracked: bool = True, equal: bool = True) -> None:
        """Send a round, and return whether the destination is then the same."""
        self._worker.run_round(StartRound(self._round, tracked))
        self._round += 1
        assert (self.destination.ram == self.ram).all() == equal

    def close(self) -> None:
        self.counters.close()
        self.limits.close()
        os.close(self.fd)


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source(8)
    yield made
    made.close()


RANDOM = np.random.default_rng(5)


def _change(ram: npt.NDArray[np.uint8], page: int, how: str) -> None:
    if how == "few":
        ram[page, RANDOM.integers(0, PAGE, 5)] += 1
    elif how == "all":
        ram[page] = RANDOM.integers(0, 256, PAGE, np.uint8)
    elif how == "zero":
        ram[page] = 0
    elif how == "back":
        ram[page] = page + 1


CHANGES = st.tuples(st.integers(0, COUNT - 1), st.sampled_from(["few", "all", "zero", "back"]))
ROUNDS = st.lists(
    st.tuples(st.lists(CHANGES, max_size=8), st.sampled_from([0, 1, 2, 4, 8, 16])), max_size=12
)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rounds=ROUNDS)
def test_destination_has_the_same_after_every_round(
    rounds: list[tuple[list[tuple[int, str]], int]],
) -> None:
    """Broken: a line would hold other bytes than the destination (law 2)."""
    source = Source(8)
    try:
        source.send()
        for changes, lines in rounds:
            for page, how in changes:
                _change(source.ram, page, how)
            source.limits.set("xbzrle_cache", lines)
            source.send()
        source.ram[:, 7] += 1
        source.send(tracked=False)
    finally:
        source.close()


@pytest.mark.parametrize("between", ["few", "all", "zero", "back"])
def test_every_way_to_send_a_page_keeps_its_line_right(source: Source, between: str) -> None:
    """Broken: the next difference would be one to bytes that the destination does not have."""
    source.ram[:] = RANDOM.integers(1, 256, source.ram.shape, np.uint8)
    source.send()
    for how in ("few", "few", between, "few"):
        _change(source.ram, 3, how)
        source.send()
    expected = {"few": (3, 0), "all": (2, 1), "zero": (2, 0), "back": (2, 1)}[between]
    assert (source.counters["xbzrle_pages"], source.counters["overflow"]) == expected
    assert source.counters["cache_miss"] == 1


def test_page_written_after_its_copy(source: Source) -> None:
    """Broken: the line, or the digest, would be of bytes that were never sent (laws 1 and 2)."""
    source.ram[:] = 7
    source.send()
    _change(source.ram, 3, "few")
    source.send()
    source.flip([3, 4], 200)
    source.writer.with_room.then(lambda: source.flip([3, 4]))
    source.send(equal=False)
    source.send()
    _change(source.ram, 3, "few")
    source.send()


def test_page_written_as_it_enters(source: Source) -> None:
    """Broken: its first difference would be one to bytes that were never sent (law 2)."""
    source.ram[:] = 7
    source.send()
    _change(source.ram, 3, "few")
    source.writer.behind.then(lambda: source.flip(3))
    source.send(equal=False)
    source.send()
    assert source.counters["xbzrle_pages"] == 1


def test_page_that_is_again_what_it_was(source: Source) -> None:
    """Broken: a page would go though the destination has it, or be thought sent though it was not.

    The guest writes between the look at the page and its copy, and makes it what it was.
    """
    source.ram[:] = 7
    source.send()
    _change(source.ram, 3, "few")
    source.send()
    source.flip(3)
    source.deltas.before.then(lambda: source.flip(3))
    source.send()
    assert source.counters["unchanged"] == 1
    source.flip(3)
    source.send()


def test_nothing_enters_in_the_last_round(source: Source) -> None:
    """Broken: the guest would be paused for longer than it takes to send."""
    source.send()
    source.ram[:, 0] += 1
    source.send(tracked=False)
    source.ram[:, 0] += 1
    # Untracked, the round before took no digests.
    source.send()
    assert source.counters["xbzrle_pages"] == 0
    assert source.counters["cache_miss"] == 2 * COUNT


def test_overflow_sends_what_was_copied(source: Source) -> None:
    """Broken: the destination would have bytes that neither the line nor the digest know of."""
    source.ram[:] = 7
    source.send()
    source.ram[[3, 4], 0] += 1
    source.send()
    _change(source.ram, 3, "few")
    _change(source.ram, 4, "all")
    source.writer.with_room.then(lambda: source.flip(4))
    source.send(equal=False)
    assert source.counters["overflow"] == 1
    source.flip(4)
    source.send()
