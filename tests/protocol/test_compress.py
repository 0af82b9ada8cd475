"""Test pages that arrive as zlib data."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol.errors import StreamError
from vmferry.protocol.pages import zlib_pages
from vmferry.protocol.wire import ram
from vmferry.protocol.wire.marks import RamFlag

from tests.streams import compressed_run

PAGE = 4096


@settings(deadline=None)
@given(
    records=st.lists(st.tuples(st.integers(0, 1 << 40), st.binary(max_size=200)), max_size=8),
    behind=st.binary(max_size=20),
    most=st.integers(0, 9),
)
def test_records_are_as_declared(
    records: list[tuple[int, bytes]], behind: bytes, most: int
) -> None:
    """Broken: the fast reading of records would find others than those declared."""
    declared = ram.compressed_record(continued=True)
    flags = int(RamFlag.COMPRESS_PAGE | RamFlag.CONTINUE)
    data = b"".join(
        declared.build({"header": number * PAGE | flags, "data": page}) for number, page in records
    )
    # No record begins with these.
    behind = b"\xff" * 8 + behind
    addresses, starts, sizes = zlib_pages.parse_records(memoryview(data + behind), 0, most, PAGE)
    found = [data[at : at + size] for at, size in zip(starts, sizes, strict=True)]
    expected = records[:most]
    assert [*zip(addresses, found, strict=True)] == [(n * PAGE, page) for n, page in expected]


@pytest.mark.parametrize("cut", range(1, 15))
def test_a_record_that_is_not_whole_is_left(cut: int) -> None:
    """Broken: a page would be read from bytes that have not come yet."""
    flags = int(RamFlag.COMPRESS_PAGE | RamFlag.CONTINUE)
    data = ram.compressed_record(continued=True).build({"header": flags, "data": b"abc"})
    assert zlib_pages.parse_records(memoryview(data[:-cut]), 0, 9, PAGE) == ([], [], [])


@given(pages=st.lists(st.binary(max_size=300), min_size=1, max_size=9), level=st.integers(0, 9))
def test_pages_come_back(pages: list[bytes], level: int) -> None:
    """Broken: RAM would differ from the source's."""
    whole = [page.ljust(PAGE, page[:1] or b"\0") for page in pages]
    contents = {n: zlib.compress(page, level) for n, page in enumerate(whole)}
    found = zlib_pages.decompress(compressed_run(0, contents), PAGE)
    assert found.tobytes() == b"".join(whole)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        zlib.compress(bytes(PAGE - 1)),
        zlib.compress(bytes(PAGE + 1)),
        zlib.compress(bytes(PAGE))[:-1],
        zlib.compress(bytes(PAGE)) + b"x",
        zlib.compress(bytes(PAGE))[:-1] + b"x",
    ],
)
def test_what_is_no_page_is_refused_where_it_stands(data: bytes) -> None:
    """Broken: half a page would be taken for one, or an error would not say where."""
    run = compressed_run(0, {0: zlib.compress(bytes(PAGE)), 1: data})
    with pytest.raises(StreamError, match="not the zlib data of 4096 bytes") as caught:
        zlib_pages.decompress(run, PAGE)
    assert caught.value.offset == run.encoding_offset(1)


def test_a_bomb_costs_no_memory() -> None:
    """Broken: a few kilobytes would take all memory."""
    bomb = zlib.compress(bytes(64 << 20), 9)
    run = compressed_run(0, {0: bomb})
    tracemalloc.start()
    try:
        with pytest.raises(StreamError):
            zlib_pages.decompress(run, PAGE)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_random_pages_fit_the_bound() -> None:
    """Broken: pages that do not compress would be refused as too long."""
    for size in (1 << 10, 1 << 12, 1 << 16):
        page = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
        assert max(len(zlib.compress(page, level)) for level in range(10)) <= zlib_pages.bound(size)
