"""The numpy fast paths for page records: the same as their declarations, both ways."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol.pages import records
from vmferry.protocol.wire import ram
from vmferry.protocol.wire.marks import RamFlag

SIZES = st.sampled_from([1024, 4096])
NUMBERS = st.lists(st.integers(0, (1 << 40) - 1), min_size=1, max_size=40)
NAMES = st.one_of(st.none(), st.binary(min_size=1, max_size=255))
RANDOM = np.random.default_rng(1)


def _declared(
    kind: RamFlag, offsets: list[int], name: bytes | None, bodies: list[dict[str, object]]
) -> bytes:
    """Return the records as their declarations build them, one by one."""
    pieces = []
    for index, (offset, body) in enumerate(zip(offsets, bodies, strict=True)):
        continued = index > 0 or name is None
        flags = kind | (RamFlag.CONTINUE if continued else 0)
        size = len(body["page"]) if kind == RamFlag.PAGE else 0  # type: ignore[arg-type]
        record = ram.plain_record(size, continued=continued)
        if kind == RamFlag.ZERO:
            record = ram.zero_record(continued=continued)
        pieces.append(record.build({"header": offset | flags, "name": name, **body}))
    return b"".join(pieces)


def _offsets(numbers: list[int], page_size: int) -> npt.NDArray[np.uint64]:
    return np.array(numbers, np.uint64) * np.uint64(page_size)


@settings(deadline=None, max_examples=50)
@given(page_size=SIZES, numbers=NUMBERS, name=NAMES)
def test_plain_records_are_as_declared(
    page_size: int, numbers: list[int], name: bytes | None
) -> None:
    """Broken: pages would leave in another form than the one declared."""
    offsets = _offsets(numbers, page_size)
    data = RANDOM.integers(0, 256, (len(numbers), page_size), np.uint8)
    bodies: list[dict[str, object]] = [{"page": bytes(page)} for page in data]
    expected = _declared(RamFlag.PAGE, offsets.tolist(), name, bodies)
    out = np.full(records.plain_size(len(numbers), page_size, name) + 3, 0xEE, np.uint8)
    assert records.pack_plain(out, name, offsets, data) == len(expected) == len(out) - 3
    assert bytes(out) == expected + b"\xee" * 3
    out[:] = 0
    records.pack_plain(out.data, name, offsets, np.asfortranarray(data))
    assert bytes(out[:-3]) == expected
    order = RANDOM.permutation(len(numbers))
    records.pack_plain_gather(out, name, offsets, data[order], np.argsort(order))
    assert bytes(out[:-3]) == expected


@settings(deadline=None, max_examples=50)
@given(page_size=SIZES, numbers=NUMBERS, name=NAMES, fill=st.integers(0, 255))
def test_zero_records_are_as_declared(
    page_size: int, numbers: list[int], name: bytes | None, fill: int
) -> None:
    """Broken: zero pages would leave in another form than the one declared."""
    offsets = _offsets(numbers, page_size)
    bodies: list[dict[str, object]] = [{"fill": fill}] * len(numbers)
    expected = _declared(RamFlag.ZERO, offsets.tolist(), name, bodies)
    out = bytearray(records.zero_size(len(numbers), name))
    assert records.pack_zero(memoryview(out), name, offsets, fill) == len(expected)
    assert bytes(out) == expected


@settings(deadline=None, max_examples=50)
@given(
    page_size=SIZES,
    count=st.integers(0, 300),
    fill=st.one_of(st.none(), st.integers(0, 255)),
    other=st.sampled_from(["kind", "named", "fill", "cut", "end"]),
)
def test_a_run_is_found_to_its_end(
    page_size: int, count: int, fill: int | None, other: str
) -> None:
    """Broken: a run would stop early (slow) or swallow a record that is not of it."""
    offsets = _offsets(list(range(count + 1)), page_size)
    out = bytearray(records.plain_size(count + 1, page_size, None))
    if fill is None:
        data = RANDOM.integers(0, 256, (count + 1, page_size), np.uint8)
        size = records.pack_plain(memoryview(out), None, offsets, data)
    else:
        size = records.pack_zero(memoryview(out), None, offsets, fill)
    stride = size // (count + 1)
    last = size - stride + 7
    flips = {"kind": RamFlag.PAGE | RamFlag.ZERO, "named": RamFlag.CONTINUE}
    if other in flips:
        out[last] ^= flips[other]
    elif other == "fill" and fill is not None:
        out[last + 1] ^= 1
    elif other == "cut":
        size -= 1
    whole = other == "end" or (other == "fill" and fill is None)
    view = np.frombuffer(out, np.uint8)[:size]
    if fill is None:
        found = records.parse_plain(view, 0, page_size, 7 * page_size)
    else:
        found = records.parse_zero(view, 0, page_size, 7 * page_size, fill)
    assert found.tolist() == [7 * page_size, *offsets[: count + whole].tolist()]


def test_pages_of_a_run_are_a_view() -> None:
    """Broken: every received page would be copied once more."""
    data = RANDOM.integers(0, 256, (9, 4096), np.uint8)
    out = np.zeros(records.plain_size(9, 4096, b"ram"), np.uint8)
    records.pack_plain(out, b"ram", _offsets(list(range(9)), 4096), data)
    found = records.plain_pages(out, 12, 9, 4096)
    assert (found == data).all()
    assert np.shares_memory(found, out)


def _best(action: object, times: int = 30) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        action()  # type: ignore[operator]
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.parametrize("count", [255])
def test_parsing_a_run_costs_less_than_copying_it(count: int) -> None:
    """Broken: taking a run apart would touch its pages, or go record by record."""
    data = np.ones((count, 4096), np.uint8)
    out = np.zeros(records.plain_size(count, 4096, None), np.uint8)
    records.pack_plain(out, None, _offsets(list(range(count)), 4096), data)
    declared = ram.plain_record(4096, continued=True)
    whole = bytes(out)
    parse = _best(lambda: records.parse_plain(out, 0, 4096, 0))
    one_by_one = _best(lambda: [declared.parse(whole[i : i + 4104]) for i in range(0, 20520, 4104)])
    assert parse * 5 < one_by_one / 5 * count
