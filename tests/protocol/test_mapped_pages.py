"""mapped-ram: where pages are, and what lies about it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError, UnsupportedError
from vmferry.protocol.pages.mapped_pages import ReadAt, list_pieces, read_pages
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.wire import mapped_ram
from vmferry.protocol.wire.mapped_ram import MappedRam

from tests.protocol.kinds import mapped
from tests.streams import closing, plainly, ram_start, read, to_bytes

SPARSE = {"pc.ram": [0, 1, 2, 300, 301, 500, 699], "none": [], "rom": [*range(700)]}


def _listed(data: bytes) -> events.RamBlocks:
    (found,) = (event for event in read(data) if isinstance(event, events.RamBlocks))
    return found


def _at(data: bytes) -> ReadAt:
    return lambda position, size: data[position : position + size]


def _images(data: bytes) -> dict[str, bytes]:
    listed = _listed(data)
    images = {block.name: bytearray(block.length) for block in listed.blocks}
    for run in read_pages(listed, _at(data)):
        assert run.data is not None
        for row, offset in enumerate(run.offsets.tolist()):
            page = run.data[row].tobytes()
            images[run.block.name][offset : offset + len(page)] = page
            place = run.record_offset(row)
            assert data[place : place + len(page)] == page
    return {name: bytes(image) for name, image in images.items()}


@pytest.mark.parametrize("page_size", [4096, 1 << 16])
@pytest.mark.parametrize("file_offset", [0, 12345])
def test_pages_are_where_they_are(page_size: int, file_offset: int) -> None:
    """Broken: RAM would differ from the source's."""
    count = 700 if page_size == 4096 else 70
    wanted = {name: [n for n in pages if n < count] for name, pages in SPARSE.items()}
    data, images = mapped(wanted, page_size=page_size, file_offset=file_offset, count=count)
    assert _images(data) == images


@settings(deadline=None, max_examples=25)
@given(pages=st.sets(st.integers(0, 699), max_size=40))
def test_any_pages(pages: set[int]) -> None:
    """Broken: a run or a window of pages would lose or gain one."""
    data, images = mapped({"ram": sorted(pages), "rom": [5]})
    assert _images(data) == images


def test_the_list_is_written_as_it_was() -> None:
    """Broken: a mapped-ram file could not be written as it was read."""
    data, _ = mapped(SPARSE, file_offset=4096)
    pieces = list_pieces(_listed(data))
    assert len(pieces) == 4
    for at, piece in pieces:
        assert data[at : at + len(piece)] == piece
    with pytest.raises(ValueError, match="the list is between pages"):
        to_bytes([_listed(data)])


@pytest.mark.parametrize("step", [1 << 20, 70_001])
@pytest.mark.parametrize("skipped", [False, True])
def test_pages_may_be_skipped(step: int, skipped: bool) -> None:
    """Broken: a file would have to be read from end to end, or what follows be misplaced."""
    data, _ = mapped(SPARSE)
    reader, at, found, presented = StreamReader(), 0, [], 0
    while at < len(data):
        if skipped and reader.to_skip:
            at += reader.to_skip
            reader.skip(reader.to_skip)
        found += plainly(reader.feed(data[at : at + step]))
        presented += len(data[at : at + step])
        at += step
    assert found + plainly(reader.close()) == plainly(read(data))
    assert (presented < len(data) // 2 or step > 1 << 19) if skipped else presented == len(data)


def test_blocks_that_were_left_out() -> None:
    """Broken: mapped-ram together with x-ignore-shared could not be read."""
    blocks = (
        events.RamBlock("shared", 1 << 20, address=0, mapped=MappedRam(4096, 0, 0)),
        events.RamBlock("other", 1 << 20, address=1 << 20, mapped=MappedRam(4096, 0, 0)),
    )
    head = events.Configuration(0, "pc", None, ("x-ignore-shared", "mapped-ram"))
    data = to_bytes([events.Header(0), head, *ram_start(blocks), *closing(early=())])
    assert _listed(data).blocks == blocks
    assert to_bytes(read(data)) == data
    assert list(read_pages(_listed(data), _at(data))) == []


def _lying(**lies: int) -> tuple[bytes, int]:
    """Return a file whose second block has a false header, and the offset of that."""
    data, _ = mapped({"ram": [1], "rom": [2]})
    at, entry = list_pieces(_listed(data))[2]
    at += len(entry) - mapped_ram.HEADER_SIZE
    header = mapped_ram.Header.parse(data[at:])
    lie = mapped_ram.Header.build({**header, **lies})
    return data[:at] + lie + data[at + len(lie) :], at


@pytest.mark.parametrize(
    ("lies", "message"),
    [
        ({"version": 2}, "mapped-ram version 2 is not supported"),
        ({"page_size": 8192}, "a block of pages of 8192 bytes, not 4096"),
        ({"page_size": 0}, "pages of 0 bytes"),
        ({"bitmap_offset": 0}, "over each other"),
        ({"bitmap_offset": 1 << 20}, "over each other"),
        ({"pages_offset": 1 << 20}, "over each other"),
        ({"pages_offset": (1 << 64) - 4096}, "outside any file"),
        ({"bitmap_offset": (1 << 64) - 8}, "over each other"),
    ],
)
def test_lies_about_places_are_refused(lies: dict[str, int], message: str) -> None:
    """Broken: pages would be read from headers or other pages, or wherever a stream likes."""
    data, at = _lying(**lies)
    with pytest.raises(StreamError, match=message) as caught:
        read(data)
    assert caught.value.offset == at
    assert isinstance(caught.value, UnsupportedError) == ("version" in lies)


def test_a_bitmap_before_its_header_is_refused() -> None:
    """Broken: a stream would be said to begin before its file does."""
    data, _ = mapped({"ram": [1]})
    at = list_pieces(_listed(data))[1][0] + 1 + len("ram") + 8
    header = mapped_ram.Header.parse(data[at:])
    lie = mapped_ram.Header.build({**header, "bitmap_offset": 3})
    with pytest.raises(StreamError, match="a bitmap at 0x3, before its header"):
        read(data[:at] + lie + data[at + len(lie) :])


@pytest.mark.parametrize("what", ["a page of block", "the bitmap of block"])
def test_what_lies_past_the_end_is_refused(what: str) -> None:
    """Broken: pages that were cut off would be taken for zero, or for others."""
    data, _ = mapped({"ram": [699]})
    listed = _listed(data)
    place = listed.blocks[0].mapped
    assert place is not None
    end = place.pages_offset + 699 * 4096 + 5 if "page" in what else place.bitmap_offset + 40
    with pytest.raises(StreamError, match=f"{what} ram lies past the end of the file"):
        list(read_pages(listed, _at(data[:end])))


def test_bits_behind_the_last_page_are_refused() -> None:
    """Broken: a page would be put behind its RAM block."""
    data, _ = mapped({"ram": [1]}, count=700)
    listed = _listed(data)
    place = listed.blocks[0].mapped
    assert place is not None
    at = place.bitmap_offset + 700 // 8
    wrong = data[:at] + bytes([data[at] | 1 << 700 % 8]) + data[at + 1 :]
    with pytest.raises(StreamError, match="the bitmap of block ram has a page 700 of 700"):
        list(read_pages(listed, _at(wrong)))


@pytest.mark.parametrize("bits", [0, 255])
def test_huge_blocks_take_no_memory(bits: int) -> None:
    """Broken: a declared petabyte would be allocated."""
    length = 1 << 44
    place = mapped_ram.lay_out(length, 4096, 100)
    block = events.RamBlock("ram", length, mapped=place)
    listed = events.RamBlocks(58, length, (block,))
    reads: list[int] = []

    def read_at(position: int, size: int) -> bytes:
        reads.append(size)
        end = place.bitmap_offset + (8 << 20)
        return bytes([bits]) * min(size, max(0, end - position))

    tracemalloc.start()
    try:
        with pytest.raises(StreamError, match="past the end of the file"):
            list(read_pages(listed, read_at))
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert max(reads) <= 1 << 20


def test_runs_are_long() -> None:
    """Broken: reading would take a step in Python, or a system call, for each page."""
    data, _ = mapped({"ram": [*range(0, 700, 2)], "rom": [*range(700)]})
    runs = list(read_pages(_listed(data), _at(data)))
    assert len(runs) == 6
    assert sum(len(run.offsets) for run in runs) == 1050
    assert all(np.all(np.diff(run.offsets.astype(np.int64)) > 0) for run in runs)
