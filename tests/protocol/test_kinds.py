"""Streams of every kind: any cut, any damage."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError
from vmferry.protocol.reader import StreamReader

from tests.protocol.kinds import KINDS
from tests.streams import plainly, read, read_damaged, to_bytes

EACH = pytest.mark.parametrize("kind", KINDS)


def _placed(found: list[events.Event]) -> list[Any]:
    """Return events without places, which only the reader knows, to compare them."""
    places = ("offset", "payload_offset")
    return [
        (kind, {**rest[0], **dict.fromkeys(places, 0)} if isinstance(rest[0], dict) else rest)
        for kind, *rest in plainly(found)
    ]


@EACH
def test_events_and_bytes_are_the_same_thing(kind: str) -> None:
    """Broken: a stream would lose something between reading and writing it."""
    data = to_bytes(KINDS[kind])
    found = read(data)
    assert _placed(found) == _placed(KINDS[kind])
    assert to_bytes(found) == data
    at = 0
    for event in found:
        assert event.offset == at
        at += len(to_bytes([event]))


@EACH
def test_byte_by_byte(kind: str) -> None:
    """Broken: some structure would be read before it is complete."""
    data = to_bytes(KINDS[kind])
    step = 4099 if kind == "block" else 1
    reader, found = StreamReader(), []
    for at in range(0, len(data), step):
        found += plainly(reader.feed(data[at : at + step]))
    assert found + plainly(reader.close()) == plainly(read(data))


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(1, 3000), min_size=1))
@EACH
def test_any_cut_gives_the_same_events(kind: str, cuts: list[int]) -> None:
    """Broken: what is read would depend on how the network cuts the stream."""
    data = to_bytes(KINDS[kind])
    reader, at, found = StreamReader(), 0, []
    while at < len(data):
        size = cuts[at % len(cuts)] * (20 if kind == "block" else 1)
        found += plainly(reader.feed(data[at : at + size]))
        at += size
    assert found + plainly(reader.close()) == plainly(read(data))


@settings(max_examples=60)
@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=9))),
    cut=st.floats(0, 1),
)
@EACH
def test_damage_never_ends_in_another_exception(
    kind: str, places: list[tuple[float, bytes]], cut: float
) -> None:
    """Broken: a hostile stream would end in a traceback, or be misread."""
    data = bytearray(to_bytes(KINDS[kind]))
    for place, new in places:
        at = int(place * len(data))
        data[at : at + len(new)] = new
    if cut < 0.3:
        del data[int(cut * 3 * len(data)) :]
    read_damaged(bytes(data))


@EACH
def test_a_stream_that_ends_early_is_refused(kind: str) -> None:
    """Broken: a destination would start half a guest."""
    data = to_bytes(KINDS[kind])
    end = max(e.offset for e in read(data) if isinstance(e, events.EndOfStream))
    for at in {*range(0, end, max(1, end // 97)), end}:
        if kind != "nothing-told":
            with pytest.raises(StreamError):
                read(data[:at])
