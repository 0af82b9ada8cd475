"""Plain and zero pages in runs of both kinds: the same pages and errors as in runs of one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError
from vmferry.protocol.reader import StreamReader

from tests.streams import (
    PAGE,
    every_event,
    page_run,
    stream_with,
    to_bytes,
    xbzrle_run,
)

Pages = list[tuple[str, int, bool]]
RUNS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1]),
        st.sampled_from([None, 0, 0, 7]),
        st.integers(1, 30),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)
CUTS = st.lists(st.integers(1, 3 * PAGE), min_size=1, max_size=8)


def fed(reader: StreamReader, data: bytes, cuts: Iterable[int]) -> list[events.Event]:
    """Return the events before the last device section, of a stream that arrives in pieces."""
    found, at, sizes = [], 0, list(cuts)
    while at < len(data):
        size = sizes[at % len(sizes)]
        found += reader.feed(data[at : at + size])
        at += size
    return found


def pages(found: Iterable[events.Event]) -> Pages:
    """Return block, page and whether it is zero, of each record."""
    result: Pages = []
    for event in found:
        if isinstance(event, events.MixedRun):
            assert len(event.offsets) == len(event.zero)
            kinds = event.zero.tolist()
        elif isinstance(event, events.PageRun):
            kinds = [event.data is None] * len(event.offsets)
        else:
            continue
        result += zip([event.block.name] * len(kinds), event.offsets.tolist(), kinds, strict=True)
    return result


@given(RUNS, CUTS)
def test_the_same_pages(runs: list[tuple[int, int | None, int, bool]], cuts: list[int]) -> None:
    """Broken: a relay would show other pages, or call a good stream a broken one."""
    records: list[events.PageRun] = []
    for index, fill, count, continued in runs:
        numbers = [number % (8 if index else 256) for number in range(count)]
        same = bool(records) and records[-1].block_index == index
        records.append(page_run(index, numbers, fill, continued=continued and same))
    data = stream_with(*records)
    ordinary, mixed = StreamReader(), StreamReader(mixed=True)
    wanted = fed(ordinary, data, cuts)
    found = fed(mixed, data, cuts)
    assert pages(found) == pages(wanted)
    others = [event for event in found if not isinstance(event, events.PageRun)]
    assert others == [event for event in wanted if not isinstance(event, events.PageRun)]
    assert len(mixed.close()) == len(ordinary.close())


def test_every_other_event_is_the_same() -> None:
    """Broken: a relay would not follow a stream that has more than plain and zero pages."""
    data = to_bytes(every_event())
    kinds = [
        [type(event) for event in fed(reader, data, [len(data)]) + reader.close()]
        for reader in (StreamReader(), StreamReader(mixed=True))
    ]
    kept = [[kind for kind in found if not issubclass(kind, events.PageRun)] for found in kinds]
    assert kept[0] == kept[1]
    assert events.MixedRun in kinds[1]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 255))
def test_the_same_error(before: int, behind: int, value: int) -> None:
    """Broken: one side of a relay would name another place, or a page outside RAM would pass."""
    record = page_run(0, [*range(before), 200, *range(behind)], None)
    data = stream_with(record, xbzrle_run(0, {3: b"\0\x01x"}))
    # The highest byte of the address, and then the lowest one, which holds the flags.
    place = data.index((200 * PAGE | (0x28 if before else 0x08)).to_bytes(8, "big"))
    for where in (place, place + 7):
        damaged = bytearray(data)
        damaged[where] ^= value
        assert error(damaged, mixed=True) == error(damaged, mixed=False)


def error(data: bytes | bytearray, *, mixed: bool) -> tuple[str, int]:
    """Return the message about a damaged stream, and how many pages precede it."""
    reader = StreamReader(mixed=mixed)
    try:
        return "", len(pages(reader.feed(data) + reader.close()))
    except StreamError as failure:
        return str(failure), len(pages(failure.found))


def test_no_page_is_read_twice() -> None:
    """Broken: a run that ends with the bytes at hand would be read again with the next ones."""
    data = stream_with(page_run(0, range(100), None))
    reader, found = StreamReader(mixed=True), []
    for at in range(0, len(data), 5000):
        found += reader.feed(data[at : at + 5000])
    numbers = [page // PAGE for _, page, _ in pages(found)]
    assert numbers == list(range(100))
    assert not np.any([event.zero.any() for event in found if isinstance(event, events.MixedRun)])


def test_no_content_is_waited_for() -> None:
    """Broken: a relay would copy the beginning of each page whose end arrives later."""
    data = stream_with(page_run(0, range(100), None))
    begun = data.index((50 * PAGE | 0x28).to_bytes(8, "big")) + 8 + 1000
    reader = StreamReader(mixed=True)
    found, used = reader.parse(memoryview(data)[:begun])
    assert [page // PAGE for _, page, _ in pages(found)] == list(range(51))
    assert (used, reader.to_skip) == (begun, PAGE - 1000)
    # Whether the rest is skipped or presented makes no difference.
    reader.skip(500)
    found, _ = reader.parse(memoryview(data)[begun + 500 :])
    assert [page // PAGE for _, page, _ in pages(found)] == list(range(51, 100))
