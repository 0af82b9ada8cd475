"""XBZRLE: what is encoded decodes to the same page, is short, and nothing wrong is decoded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol.pages import xbzrle
from vmferry.protocol.pages.xbzrle import RECORD_HEAD, Delta, XbzrleError
from vmferry.protocol.wire import ram
from vmferry.protocol.wire.marks import RamFlag

PAGE = 512
EDITS = st.lists(st.tuples(st.integers(0, PAGE - 1), st.integers(1, 200)), max_size=40)
BATCHES = st.lists(EDITS, min_size=1, max_size=30)
NAMES = st.one_of(st.none(), st.binary(min_size=1, max_size=255))

Pages = npt.NDArray[np.uint8]


def _edited(batch: list[list[tuple[int, int]]]) -> tuple[Pages, Pages]:
    """Draw old and new pages; an edit is a run of that many bytes, most of which change."""
    random = np.random.default_rng(len(batch))
    old = random.integers(0, 256, (len(batch), PAGE), np.uint8)
    new = old.copy()
    for page, edits in zip(new, batch, strict=True):
        for start, length in edits:
            page[start : start + length] ^= random.integers(0, 4, len(page[start:][:length]), "u1")
    return old, new


def _decoded(old: bytes, encoding: bytes) -> bytes:
    """Return a decoded page, byte by byte as the documentation says."""
    page, at, position = bytearray(old), 0, 0
    while position < len(encoding):
        lengths = []
        for _ in range(2):
            length = encoding[position] & 0x7F
            if encoding[position] & 0x80:
                position += 1
                length |= encoding[position] << 7
            position += 1
            lengths.append(length)
        at += lengths[0]
        page[at : at + lengths[1]] = encoding[position : position + lengths[1]]
        at, position = at + lengths[1], position + lengths[1]
    assert position == len(encoding)
    assert len(page) == len(old)
    return bytes(page)


def _optimum(old: Pages, new: Pages) -> int:
    """Return the size of the shortest encoding, over all ways to choose runs."""

    def head(length: int) -> int:
        return 1 if length < 128 else 2

    differs = (old != new).tolist()
    first = [at for at in range(PAGE) if differs[at] and not (at and differs[at - 1])]
    ends = [at + 1 for at in range(PAGE) if differs[at] and not (at + 1 < PAGE and differs[at + 1])]
    best = [0] * (len(first) + 1)
    for last in range(len(first)):
        best[last + 1] = min(
            best[begin]
            + head(first[begin] - (ends[begin - 1] if begin else 0))
            + head(ends[last] - first[begin])
            + ends[last]
            - first[begin]
            for begin in range(last + 1)
        )
    return best[-1]


@settings(deadline=None, max_examples=60)
@given(batch=BATCHES, name=NAMES)
def test_records_are_as_declared_and_decode(
    batch: list[list[tuple[int, int]]], name: bytes | None
) -> None:
    """Broken: a destination would have other bytes than the source."""
    old, new = _edited(batch)
    delta = Delta(old, new)
    assert (delta.sizes == 0).tolist() == (old == new).all(axis=1).tolist()
    offsets = np.arange(len(batch), dtype=np.uint64)[::-1] * np.uint64(PAGE)
    out = np.full(delta.pack_size(name) + 3, 0xEE, np.uint8)
    assert delta.pack(out, name, offsets) == len(out) - 3
    assert bytes(out[-3:]) == b"\xee" * 3
    position, continued = 0, name is None
    for index in np.flatnonzero(delta.encoded).tolist():
        record = ram.xbzrle_record(continued=continued)
        found = record.parse(out[position:].tobytes())
        flags = RamFlag.XBZRLE | (RamFlag.CONTINUE if continued else 0)
        assert found.header == int(offsets[index]) | flags
        if not continued:
            assert found.name == name
        assert len(found.data) == delta.sizes[index]
        assert _decoded(old[index].tobytes(), found.data) == new[index].tobytes()
        position, continued = position + len(record.build(found)), True
    assert position == len(out) - 3


@settings(deadline=None, max_examples=60)
@given(batch=BATCHES)
def test_encodings_are_near_the_shortest(batch: list[list[tuple[int, int]]]) -> None:
    """Broken: XBZRLE would save less than it can."""
    old, new = _edited(batch)
    delta = Delta(old, new)
    for index, size in enumerate(delta.sizes.tolist()):
        assert size <= 1.05 * _optimum(old[index], new[index])


def test_overflow() -> None:
    """Broken: pages that changed altogether would be longer than they are as they stand."""
    random = np.random.default_rng(1)
    old, new = random.integers(0, 256, (2, 3, PAGE), np.uint8)
    new[1] = old[1]
    new[1, :8] ^= 1
    delta = Delta(old, new)
    assert delta.overflow.tolist() == [True, False, True]
    assert delta.encoded.tolist() == [False, True, False]
    assert delta.pack_size(b"ram") == 4 + RECORD_HEAD.itemsize + 10


def test_runs_longer_than_a_length_overflow() -> None:
    """Broken: big pages would carry lengths of three bytes, which no QEMU takes."""
    old = np.zeros((2, 1 << 16), np.uint8)
    new = old.copy()
    new[0, -1] = new[1, 16383] = 1
    assert Delta(old, new).overflow.tolist() == [True, False]


def _encodings(old: Pages, new: Pages) -> list[bytes]:
    """Return the encoding of every page, empty for those that are unchanged or overflow."""
    delta = Delta(old, new)
    out = np.empty(delta.pack_size(None), np.uint8)
    delta.pack(out, None, np.zeros(len(old), np.uint64))
    found, position = [], 0
    for encoded, size in zip(delta.encoded, delta.sizes, strict=True):
        start = position + RECORD_HEAD.itemsize
        found.append(out[start : start + size].tobytes() if encoded else b"")
        position = start + int(size) if encoded else position
    return found


def _apply(pages: Pages, numbers: list[int], encodings: list[bytes]) -> None:
    sizes = np.array([len(encoding) for encoding in encodings], np.intp)
    # Encodings stand apart, as they do behind their records.
    data = np.frombuffer(b"".join(b"\xff\xff" + encoding for encoding in encodings), np.uint8)
    starts = np.cumsum(sizes + 2) - sizes
    runs = xbzrle.read_runs(data, starts, sizes, pages.shape[1])
    xbzrle.apply(pages, np.array(numbers, np.intp), data, runs)


@settings(deadline=None, max_examples=60)
@given(batch=BATCHES)
def test_round_trip_of_batches(batch: list[list[tuple[int, int]]]) -> None:
    """Broken: pages decoded together would differ from pages decoded one by one."""
    old, new = _edited(batch)
    encodings = _encodings(old, new)
    pages = np.zeros((len(batch) + 2, PAGE), np.uint8)
    numbers = list(range(len(batch), 0, -1))
    pages[numbers] = old
    _apply(pages, numbers, encodings)
    for number, page, before, encoding in zip(numbers, new, old, encodings, strict=True):
        assert (pages[number] == (page if encoding else before)).all()
    assert not pages[0].any()
    assert not pages[-1].any()


@pytest.mark.parametrize("others", [0, 50])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        (b"\x01", "ends within a run"),
        (b"\x01\x02", "ends within a run"),
        (b"\x80\x01", "ends within a run"),
        (b"\x05\x01a\x03", "ends within a run"),
        (b"\x05\x01a\x00\x01b", "empty run of unchanged"),
        (b"\x05\x00a", "empty run of changed"),
        (b"\x05\x03ab", "longer than its encoding"),
        (b"\x80\x80\x01\x01a", "above 14 bits"),
        (b"\x01\xff\x80\x01aaaaa", "above 14 bits"),
        (b"\xff\x03\x02ab", "outside the page"),
        (b"\x80\x04\x01a", "outside the page"),
        (b"\xfe\x03\x01a\x01\x01b", "outside the page"),
    ],
)
def test_wrong_encodings_are_refused(encoding: bytes, message: str, others: int) -> None:
    """Broken: a stream could write outside a page, or a page would be rebuilt wrong."""
    pages = np.zeros((others + 1, PAGE), np.uint8)
    encodings = [b"\x00\x01x\x01\x01y"] * others
    encodings.insert(others // 2, encoding)
    with pytest.raises(XbzrleError, match=message) as caught:
        _apply(pages, list(range(others + 1)), encodings)
    assert caught.value.index == others // 2
    assert not pages.any()


@settings(deadline=None, max_examples=200)
@given(encodings=st.lists(st.binary(max_size=40), min_size=1, max_size=30))
def test_anything_is_decoded_or_refused(encodings: list[bytes]) -> None:
    """Broken: one bad page could be decoded among many, or end the program."""

    def outcome(numbers: list[int], some: list[bytes]) -> tuple[bool, Pages]:
        pages = np.zeros((len(encodings) + 2, PAGE), np.uint8)
        try:
            _apply(pages, numbers, some)
        except XbzrleError:
            return False, pages
        return True, pages

    together, pages = outcome(list(range(1, len(encodings) + 1)), encodings)
    single = [outcome([index + 1], [one]) for index, one in enumerate(encodings)]
    assert together == all(good for good, _ in single)
    if together:
        assert (pages == sum(one for _, one in single)).all()


def test_changes_of_one_page_come_in_order() -> None:
    """Broken: the older of two changes could win."""
    pages = np.zeros((2, PAGE), np.uint8)
    _apply(pages, [1, 1, 0, 1], [b"\x00\x03aaa", b"\x01\x01b", b"\x00\x01c", b"\x02\x01d"])
    assert pages[1, :4].tobytes() == b"abd\0"
    assert pages[0, :2].tobytes() == b"c\0"
