"""Pages as packets of a multifd channel, sent while the guest writes (law 1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmferry.guest.mapping import map_block
from vmferry.guest.parts import RamBlock
from vmferry.guest.tracking.digests import DigestTracker
from vmferry.guest.tracking.marks import MarkTracker, mark_writes
from vmferry.guest.tracking.tracker import Tracker
from vmferry.protocol import events
from vmferry.protocol.pages import packets
from vmferry.protocol.reading.multifd_reader import ChannelReader
from vmferry.protocol.wire.marks import RamFlag
from vmferry.protocol.wire.multifd import Compression
from vmferry.protocol.wire.ram import RECORD_HEADER_SIZE
from vmferry.sender.chunks import MappedBlock
from vmferry.sender.multifd.numbers import PacketNumbers
from vmferry.sender.multifd.packet_writer import MAX_RUNS, PacketWriter
from vmferry.sender.record_writer import RecordWriter, slot_size
from vmferry.sender.share import Share
from vmferry.sender.sources import StartRound
from vmferry.sender.worker import WORKER_COUNTERS, Worker
from vmferry.transport.counters import Counters
from vmferry.transport.settings import ZeroPageDetection

from tests.streams import listed

PAGE = 4096
COUNT = 700
LISTED = listed([events.RamBlock("ram", COUNT * PAGE)])


class Destination:
    """The other end of a channel and of the main one, which puts the pages into RAM of its own."""

    def __init__(self) -> None:
        self.ram = np.full((COUNT, PAGE), 0xEE, np.uint8)
        self.syncs = 0
        self.ended: list[int] = []
        self.on_send: Callable[[], None] = lambda: None
        """Function that is called when pages leave the memory of the guest."""
        self._channel = ChannelReader()
        self._channel.greet(memoryview(packets.hello(bytes(16), 0)))
        self._channel.list_blocks(LISTED)
        self._buffer = memoryview(bytearray(slot_size(PAGE)))

    def send(self, *pieces: memoryview) -> None:
        """Take what the writer sends over the channel."""
        with_pages = len(pieces) > 1
        if with_pages:
            self.on_send()
        data = memoryview(b"".join(pieces))
        if with_pages:
            self.on_send()
        while data:
            head = self._channel.wanted
            packet = self._channel.read_head(data[:head])
            data = data[head:]
            self.syncs += packet.sync
            size = packet.payload_size
            if size:
                pages = self._channel.pages(data[:size])
                self.ram[(packet.normal // np.uint64(PAGE)).astype(np.intp)] = pages
            self.ram[(packet.zero // np.uint64(PAGE)).astype(np.intp)] = 0
            data = data[size:]

    def acquire(self) -> memoryview:
        """Return the buffer for records of the main channel."""
        return self._buffer

    def publish(self, length: int) -> None:
        """Take records of zero pages from the main channel."""
        data, at = self._buffer[:length], 0
        while at < len(data):
            header = int.from_bytes(data[at : at + RECORD_HEADER_SIZE], "big")
            named = not header & RamFlag.CONTINUE
            at += RECORD_HEADER_SIZE + (1 + data[at + RECORD_HEADER_SIZE] if named else 0)
            assert header & RamFlag.ZERO
            self.ram[header // PAGE] = data[at]
            at += 1

    def end_round(self, number: int) -> None:
        """Note the end of a round."""
        self.ended.append(number)

    def check(self) -> None:
        """Do nothing: no coordinator stops the round."""


class Source:
    """RAM of a guest, and the worker that sends it over a channel."""

    def __init__(
        self,
        stack: ExitStack,
        tracker: str,
        compression: Compression = Compression.NONE,
        zero_pages: ZeroPageDetection = ZeroPageDetection.MULTIFD,
        last_syncs: int = 0,
    ) -> None:
        fd = os.memfd_create("ram")
        stack.callback(os.close, fd)
        os.ftruncate(fd, COUNT * PAGE)
        block = RamBlock("ram", COUNT * PAGE, PAGE, fd)
        flat = map_block(block)
        self.ram = flat.reshape(-1, PAGE)
        made: Tracker = DigestTracker(COUNT, PAGE)
        if tracker == "marks":
            marks = mark_writes([flat])
            stack.callback(marks.close)
            made = MarkTracker(marks.pagemap, marks.addresses[0], COUNT, PAGE)
        mapped = MappedBlock(block, b"ram", PAGE, self.ram, made)
        self.counters = Counters.create(WORKER_COUNTERS)
        limits = Counters.create(("xbzrle_cache",))
        stack.callback(self.counters.close)
        stack.callback(limits.close)
        self.destination = Destination()
        memory = PacketNumbers.memory()
        stack.callback(memory.close)
        writer = PacketWriter(
            self.destination,
            RecordWriter(self.destination, None),
            PAGE,
            zero_pages=zero_pages,
            compression=compression,
            deflater=packets.deflater(compression, 1),
            numbers=PacketNumbers(memory).take,
            last_syncs=last_syncs,
        )
        self._worker = Worker(Share(0, 1), [mapped], writer, self.counters, limits)
        self._round = 0

    def send(self, *, tracked: bool = True) -> None:
        """Send a round."""
        self._worker.run_round(StartRound(self._round, tracked))
        self._round += 1

    @property
    def arrived(self) -> bool:
        """Return whether the destination has the same memory."""
        return bool((self.destination.ram == self.ram).all())


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test has made."""
    with ExitStack() as made:
        yield made


WRITES = st.lists(
    st.tuples(st.integers(0, COUNT - 1), st.integers(1, 300), st.integers(0, 3)), max_size=20
)
COMPRESSIONS = [Compression.NONE, Compression.ZLIB, Compression.ZSTD]
ZERO = [ZeroPageDetection.NONE, ZeroPageDetection.LEGACY, ZeroPageDetection.MULTIFD]


@pytest.mark.parametrize("tracker", ["digests", "marks"])
@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rounds=st.lists(WRITES, max_size=4),
    compression=st.sampled_from(COMPRESSIONS),
    zero=st.sampled_from(ZERO),
)
def test_every_round_arrives(
    tracker: str,
    rounds: list[list[tuple[int, int, int]]],
    compression: Compression,
    zero: ZeroPageDetection,
) -> None:
    """Broken: pages would be elsewhere, or not as they were sent."""
    with ExitStack() as stack:
        source = Source(stack, tracker, compression, zero)
        for writes in [*rounds, []]:
            for first, count, content in writes:
                source.ram[first : first + count] = content
            source.send()
            assert source.arrived
    assert source.destination.syncs == len(source.destination.ended) == len(rounds) + 1


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("tracker", ["digests", "marks"])
@pytest.mark.parametrize("step", [1, 2])
def test_writes_while_pages_are_sent(
    stack: ExitStack, tracker: str, compression: Compression, step: int
) -> None:
    """Broken: what the guest writes between the look at a page and its copy, or after that, would
    never arrive."""
    source = Source(stack, tracker, compression)
    # Pages that are not in a row are copied together, or sent run by run.
    chosen = np.arange(0, 2 * MAX_RUNS * step, step)
    source.ram[:] = 3
    source.send()
    source.ram[chosen] = 4

    def write() -> None:
        source.ram[chosen] += 1

    source.destination.on_send = write
    source.send()
    source.destination.on_send = lambda: None
    before = source.counters["normal"]
    source.send()
    assert source.arrived
    assert source.counters["normal"] - before == len(chosen)


def test_zero_pages_go_where_they_belong(stack: ExitStack) -> None:
    """Broken: a QEMU before 9.0 would not see them, or one that expects them would wait."""
    for zero, counts in ((ZERO[0], (COUNT, 0)), (ZERO[1], (0, COUNT)), (ZERO[2], (0, COUNT))):
        source = Source(stack, "digests", zero_pages=zero)
        source.send()
        assert (source.counters["normal"], source.counters["duplicate"]) == counts
        assert source.arrived


def test_sync_points_behind_the_last_round(stack: ExitStack) -> None:
    """Broken: an older machine's destination would wait for a sync point for ever."""
    source = Source(stack, "digests", last_syncs=1)
    source.send()
    assert source.destination.syncs == 1
    source.send(tracked=False)
    assert source.destination.syncs == 3


def test_a_written_page_costs_no_copy(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: where the kernel marks writes, each page would be copied before it is sent."""
    source = Source(stack, "marks")
    source.ram[:] = 3
    taken: list[npt.NDArray[np.uint8]] = []
    monkeypatch.setattr(np, "take", lambda *a, **_: taken.append(a[0]))
    source.send()
    assert not taken
    assert source.arrived
