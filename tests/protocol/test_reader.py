"""Reading whole streams: any cut, any damage."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError, UnsupportedError
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.wire import ram, stream
from vmferry.protocol.wire.marks import SectionType

from tests.streams import (
    BLOCKS,
    PAGE,
    closing,
    compressed_run,
    description,
    device,
    every_event,
    opening,
    page_run,
    plainly,
    ram_part,
    ram_piece,
    ram_start,
    read,
    read_damaged,
    to_bytes,
    xbzrle_run,
)

OUTSIDE = BLOCKS[0].length
"""Offset that the first page behind `pc.ram` would have."""


def test_events_and_bytes_are_the_same_thing() -> None:
    """Broken: a stream would lose something between reading and writing it."""
    made = every_event()
    data = to_bytes(made)
    found = read(data)
    assert to_bytes(found) == data
    strip = [(kind, *rest) for kind, *rest in plainly(found)]
    for one, other in zip(strip, plainly(made), strict=True):
        for place in ("offset", "payload_offset"):
            if isinstance(one[-1], dict) and place in one[-1]:
                one[-1][place] = other[-1][place]
        assert one == other


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_no_ram_at_all(size: int) -> None:
    """Broken: the stream of a machine without RAM of its own (x-remote) would be refused."""
    data = to_bytes([events.Header(0), *ram_start(()), *closing(early=())])
    reader, found = StreamReader(), []
    for start in range(0, len(data), size):
        found += reader.feed(data[start : start + size])
    found += reader.close()
    assert to_bytes(found) == data
    assert [event.blocks for event in found if isinstance(event, events.RamBlocks)] == [()]


def test_offsets_are_true() -> None:
    """Broken: reports and errors would point at the wrong place in the stream."""
    data = to_bytes(every_event())
    at = 0
    for event in read(data):
        assert event.offset == at
        at += len(to_bytes([event]))
        if isinstance(event, events.DeviceSection):
            end = event.payload_offset + len(event.payload)
            assert data[event.payload_offset : end] == event.payload


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 9000), min_size=1))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    """Broken: what is read would depend on how the network cuts the stream."""
    data = to_bytes(every_event())
    reader, at, found = StreamReader(), 0, []
    while at < len(data):
        size = cuts[at % len(cuts)]
        found += plainly(reader.feed(data[at : at + size]))
        at += size
    assert found + plainly(reader.close()) == plainly(read(data))


@given(most=st.integers(1, 9))
def test_reading_some_events_at_a_time_gives_the_same(most: int) -> None:
    """Broken: a receiver would lose what follows many small parts, as 200,000 pings."""
    data = memoryview(to_bytes(every_event()))
    reader, at, found = StreamReader(), 0, []
    while True:
        some, used = reader.parse(data[at:], most)
        found += plainly(some)
        at += used
        if len(some) < most:
            break
    assert found + plainly(reader.close()) == plainly(read(bytes(data)))


def test_byte_by_byte() -> None:
    """Broken: some structure would be read before it is complete."""
    data = to_bytes(every_event())
    reader, found = StreamReader(), []
    for at in range(len(data)):
        found += plainly(reader.feed(data[at : at + 1]))
    assert found + plainly(reader.close()) == plainly(read(data))


def test_what_parse_leaves_is_short() -> None:
    """Broken: a receiver's slot would fill up with bytes that are not done with."""
    devices = [device(3, "big", bytes(200_000)), device(4, "next", bytes(100_000))]
    data = to_bytes([*opening(), *closing(devices)])
    reader, at = StreamReader(), 0
    while at < len(data):
        view = memoryview(data)[at : at + 8000]
        used = reader.parse(view)[1]
        assert used >= min(len(view), 8000) - 5000
        at += used
    assert at == len(data)


def test_page_data_is_a_view() -> None:
    """Broken: received pages would be copied before they reach guest RAM."""
    data = to_bytes([*opening(), *ram_part(page_run(0, [3]))])
    view = memoryview(bytearray(data))
    found, _ = StreamReader().parse(view)
    run = next(e for e in found if isinstance(e, events.PageRun))
    assert run.data is not None
    assert np.shares_memory(run.data, np.frombuffer(view, np.uint8))
    assert bytes(view[run.position : run.position + PAGE]) == run.data.tobytes()


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_stream_that_ends_early_is_refused(cut: int) -> None:
    """Broken: a destination would start half a guest."""
    data = to_bytes([*opening(), *closing([device(3, "timer", b"12345")])])
    end = data.index(b"\x00\x06", data.index(b"timer")) + 1
    with pytest.raises(StreamError):
        read(data[: max(0, end - cut)])
    with pytest.raises(StreamError):
        read(data[: len(data) - min(cut, len(data) - end - 1)])


def test_a_stream_may_end_without_description() -> None:
    """Broken: streams of sources that send none could not be read."""
    made = [*opening(), *closing([device(3, "timer", b"12345")])][:-1]
    data = to_bytes(made)
    reader = StreamReader()
    found = reader.feed(data)
    assert reader.rest is not None
    assert reader.rest.bare()
    assert not reader.whole
    assert not any(isinstance(e, events.EndOfStream) for e in found)
    found += reader.close()
    assert reader.finished
    assert to_bytes(found) == data


def test_bytes_behind_the_stream_are_left_alone() -> None:
    """Broken: a stream inside another file could not be read."""
    data = to_bytes(every_event())
    reader = StreamReader()
    reader.feed(data)
    assert reader.whole
    reader.feed(b"more")
    assert not reader.whole
    assert to_bytes([reader.close()[-1]]) == to_bytes(every_event()[-1:])
    assert (reader.end, reader.behind) == (len(data), 4)


@settings(deadline=None, max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_damage_never_ends_in_another_exception(place: float, value: int) -> None:
    """Broken: a hostile stream would end in a traceback, or worse."""
    part = ram_part(page_run(0, [1, 2], 0), page_run(1, [3], 1))
    data = bytearray(
        to_bytes([*opening(answers=True), *part, *closing([device(3, "timer", b"1" * 9)])])
    )
    data[int(place * len(data))] ^= value
    read_damaged(bytes(data))


def _records(*records: bytes) -> bytes:
    return to_bytes(opening()) + stream.section_part(2) + b"".join(records)


def _header(value: int) -> bytes:
    return ram.RecordHeader.build(value)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (_header(0x28), "the first page continues no block"),
        (_header(0x08) + b"\x03abc", "a page of an unknown block b'abc'"),
        (
            _header(OUTSIDE | 0x02) + b"\x06pc.ram\0",
            "at 0x100000 of block pc.ram, outside its RAM",
        ),
        (_header(0x01), "is no record"),
        (_header(0x1010), "is no record"),
        (_header(0x0A), "is no record"),
        (_header(0x04), "a second list of blocks"),
        (_header(0x60) + b"\x01\0\0", "the first page continues no block"),
        (_header(0x40) + b"\x03abc\x01\0\0", "a page of an unknown block b'abc'"),
        (_header(0x40) + b"\x06pc.ram\x02\0\0", "XBZRLE encoding 2 is not known"),
        (_header(0x40) + b"\x06pc.ram\x01\x10\x01", "an XBZRLE encoding of 4097 bytes"),
        (_header(OUTSIDE | 0x40) + b"\x06pc.ram\x01\0\0", "at 0x100000 of block pc.ram, out"),
        (_header(0x48), "is no record"),
        (_header(0x120), "the first page continues no block"),
        (_header(0x100) + b"\x06pc.ram\0\0\x10\x81", "a compressed page of 4225 bytes"),
        (_header(OUTSIDE | 0x100) + b"\x06pc.ram\0\0\0\0", "at 0x100000 of block pc.ram, outs"),
        (_header(0x108), "is no record"),
        (_header(0x80), "HOOK records .RDMA. are not supported"),
        (_header(0x10) + b"\x05", "byte 0x05 in place of a section's footer"),
        (_header(0x10) + b"\x7e\0\0\0\x03", "footer of section id 3, not 2"),
    ],
)
def test_bad_records_are_refused_where_they_stand(record: bytes, message: str) -> None:
    """Broken: a page could land outside RAM, or an error would not say where."""
    data = _records(record)
    with pytest.raises(StreamError, match=message) as caught:
        read(data + bytes(5000))
    behind = 8 if record.startswith(_header(0x10)) else 0
    assert caught.value.offset == len(data) - len(record) + behind
    assert caught.value.section == "ram"
    unsupported = "not supported" in str(caught.value)
    assert isinstance(caught.value, UnsupportedError) == unsupported


@pytest.mark.parametrize("which", [0, 1, 5, 30, 200])
@pytest.mark.parametrize("fill", [None, 0])
def test_every_page_of_a_run_is_checked(which: int, fill: int | None) -> None:
    """Broken: a page hidden in a long run could be written outside RAM."""
    numbers = [3] * 201
    numbers[which] = OUTSIDE // PAGE
    good = _records(to_bytes([page_run(0, numbers[:which], fill)] if which else []))
    run = to_bytes([page_run(0, numbers, fill)])
    with pytest.raises(StreamError, match="outside its RAM") as caught:
        read(_records(run))
    assert caught.value.offset == len(good)


def _ram_start(total: int, *blocks: tuple[bytes, int]) -> bytes:
    head = opening()[:3] + ram_piece(SectionType.START)[:1]
    entries = (ram.BlockEntry.build({"name": name, "length": length}) for name, length in blocks)
    return to_bytes(head) + ram.mem_size(total) + b"".join(entries)


@pytest.mark.parametrize(
    ("total", "blocks", "message"),
    [
        (1 << 47, [], "the limit is"),
        (8192, [(b"a", 4096), (b"a", 4096)], "twice"),
        (8192, [(b"", 8192)], "empty"),
        (8192, [(b"\xff", 8192)], "unreadable"),
        (8192, [(b"a", 12288)], "does not fit"),
        (8192, [(b"a", 100)], "does not fit"),
        (4096, [(b"x%d" % i, 0) for i in range(5000)], "does not fit"),
    ],
)
def test_bad_block_lists_are_refused(
    total: int, blocks: list[tuple[bytes, int]], message: str
) -> None:
    """Broken: a stream could make a destination allocate what it likes."""
    with pytest.raises(StreamError, match=message):
        read(_ram_start(total, *blocks))


def test_huge_page_blocks_after_postcopy_advice() -> None:
    """Broken: sources with huge pages and the postcopy capability could not be read."""
    blocks = (events.RamBlock("huge", 2 << 20, 2 << 20), events.RamBlock("small", 4096))
    advice = events.Command(0, 3, _advice(4096))
    for order in (blocks, blocks[::-1]):
        data = to_bytes([*opening()[:2], advice, *ram_start(order), *closing(early=())])
        found = read(data)
        assert to_bytes(found) == data
        assert next(e for e in found if isinstance(e, events.RamBlocks)).blocks == order


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (events.RamSection(0, SectionType.START, 9, "ram", 0, 3), "version 3 is not supported"),
        (events.Command(0, 8), "ENABLE_COLO is not supported"),
        (events.Command(0, 9), "POSTCOPY_RESUME is not supported"),
        (events.Command(0, 10, b"\x02pc"), "RECV_BITMAP is not supported"),
        (events.Header(0, 2), "stream version 2"),
    ],
)
def test_what_is_not_read_is_named(event: events.Event, message: str) -> None:
    """Broken: an unsupported stream would be misread instead of refused by name."""
    before = [] if isinstance(event, events.Header) else opening()[:1]
    with pytest.raises(UnsupportedError, match=message):
        read(to_bytes([*before, event]) + b"\0")


def test_page_size_comes_from_the_stream() -> None:
    """Broken: guests with pages of another size would be read as noise."""
    block = events.RamBlock("ram", 1 << 20)
    run = page_run(0, range(3), blocks=[block], page_size=1 << 16)
    middle = [*ram_start([block]), *ram_part(run), *closing(())[:-1]]
    configured = [events.Header(0), events.Configuration(0, "virt", 1 << 16), *middle]
    data = to_bytes([*configured, description([], page_size=1 << 16)])
    assert to_bytes(read(data)) == data
    data = to_bytes([events.Header(0), *middle, description([])])
    with pytest.raises(StreamError, match=r"4096 bytes by the description, were read as 65536"):
        read(data, page_size=1 << 16)


def test_a_long_run_costs_little_more_than_its_headers() -> None:
    """Broken: reading would touch every page, or every record, in Python."""
    start = to_bytes(opening()) + stream.section_part(2)
    name = to_bytes([page_run(0, [1])])
    run = to_bytes([page_run(0, list(range(60)) * 4, continued=True)])
    reader = StreamReader()
    reader.feed(start + name)
    view, copy = memoryview(run), bytearray(len(run))
    parsing, copying = [], []
    for _ in range(50):
        began = time.perf_counter()
        found, used = reader.parse(view)
        parsing.append(time.perf_counter() - began)
        assert (len(found), used) == (1, len(run))
        began = time.perf_counter()
        copy[:] = view
        copying.append(time.perf_counter() - began)
    assert min(parsing) < 2 * min(copying)


def _advice(page_size: int) -> bytes:
    values = {"block_page_sizes": 4096, "page_size": page_size, "end": None}
    return stream.PostcopyAdvice.build(values)  # type: ignore[no-any-return]


def test_page_size_comes_with_the_advice() -> None:
    """Broken: a postcopy stream of a guest with large pages would be read as noise."""
    block = events.RamBlock("ram", 1 << 16)
    run = page_run(0, [0], blocks=[block], page_size=1 << 14)
    advice = events.Command(0, 3, _advice(1 << 14))
    pages = ram_part(run)
    data = to_bytes([events.Header(0), advice, *ram_start([block]), *pages, *closing()[:-1]])
    found = read(data)
    assert to_bytes(found) == data
    assert next(e for e in found if isinstance(e, events.RamBlocks)).page_size == 1 << 14


@pytest.mark.parametrize("data", [bytes(8), bytes(17), _advice(12288), _advice(1 << 17)])
def test_advice_is_checked(data: bytes) -> None:
    """Broken: a stream could make pages of any size, or none."""
    with pytest.raises(StreamError, match=r"a POSTCOPY_ADVISE command of|pages of \d+ bytes"):
        read(to_bytes([*opening()[:1], events.Command(0, 3, data)]))


def test_advice_without_ram() -> None:
    """Broken: block sizes would be taken for page sizes where only bitmaps are postcopied."""
    data = to_bytes([*opening()[:2], events.Command(0, 3), *ram_start(), *closing(early=())])
    assert to_bytes(read(data)) == data


def test_unsaid_page_size_is_told() -> None:
    """Broken: nobody would know why a stream of other pages makes no sense."""
    block = events.RamBlock("ram", 1 << 16)
    run = page_run(0, [0], blocks=[block], page_size=1 << 13)
    data = to_bytes([events.Header(0), *ram_start([block]), *ram_part(run)])
    with pytest.raises(StreamError, match="if pages have 4096 bytes: the stream does not say"):
        read(data)


def test_blocks_with_addresses() -> None:
    """Broken: x-ignore-shared streams could not be read, or block places would be wrong."""
    blocks = (
        events.RamBlock("low", 1 << 20, address=0),
        events.RamBlock("rom", 8192, address=0xFFFC0000),
    )
    head = events.Configuration(0, "pc", None, ("x-ignore-shared",))
    data = to_bytes([events.Header(0), head, *ram_start(blocks), *closing(early=())])
    found = read(data)
    assert to_bytes(found) == data
    assert next(e for e in found if isinstance(e, events.RamBlocks)).blocks == blocks


@pytest.mark.parametrize("which", [0, 1, 5, 63])
@pytest.mark.parametrize("make_run", [xbzrle_run, compressed_run])
def test_every_encoded_record_of_a_run_is_checked(
    which: int, make_run: Callable[[int, dict[int, bytes]], events.XbzrleRun | events.CompressedRun]
) -> None:
    """Broken: a page hidden in a long run could be written outside RAM."""
    inside = dict.fromkeys(range(which), b"\x05\x01a")
    good = _records(to_bytes([make_run(0, inside)] if inside else []))
    run = make_run(0, {**inside, OUTSIDE // PAGE: b"\0\x01a"})
    with pytest.raises(StreamError, match="outside its RAM") as caught:
        read(_records(to_bytes([run])))
    assert caught.value.offset == len(good)


def test_what_comes_before_damage_is_kept() -> None:
    """Broken: damage would cost all that was read in the same piece of the stream before it."""
    part = ram_part(page_run(0, range(20)))[:2]
    data = to_bytes([*opening(), *part])
    with pytest.raises(StreamError) as caught:
        read(data + bytes(100))
    assert caught.value.offset == len(data)
    assert plainly(caught.value.found) == plainly(StreamReader().feed(data))
