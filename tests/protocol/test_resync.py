"""Chains of records: found behind damage where they are certain, and nowhere else."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

import numpy as np
import pytest
from vmferry.protocol import events
from vmferry.protocol.pages import records
from vmferry.protocol.rescue.resync import Found, Layout, Step, find_records, leads_on
from vmferry.protocol.wire import stream

PAGE = 256
RAM = events.RamBlock("ram", 4096 * PAGE)
ROM = events.RamBlock("rom", 64 * PAGE)
LAYOUT = Layout(PAGE, {b"ram": RAM, b"rom": ROM}, 2)
EOS = b"\0\0\0\0\0\0\0\x10"


def _plain(numbers: Iterable[int], name: bytes | None = None, seed: int = 1) -> bytes:
    offsets = np.array([*numbers], np.uint64) * np.uint64(PAGE)
    data = np.random.default_rng(seed).integers(0, 256, (len(offsets), PAGE), np.uint8)
    out = memoryview(bytearray(records.plain_size(len(offsets), PAGE, name)))
    records.pack_plain(out, name, offsets, data)
    return bytes(out)


def _zero(numbers: Iterable[int]) -> bytes:
    offsets = np.array([*numbers], np.uint64) * np.uint64(PAGE)
    out = memoryview(bytearray(records.zero_size(len(offsets), None)))
    records.pack_zero(out, None, offsets)
    return bytes(out)


def _find(data: bytes, step: Step | None = None, ram_end: int | None = None) -> Found | None:
    return find_records(memoryview(data), LAYOUT, step, ram_end)


def _noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


def test_the_first_record_behind_noise() -> None:
    """Broken: a sound record would be missed, or garbage be read as one."""
    for size in range(0, 300, 7):
        assert _find(_noise(size) + _plain(range(20, 30))) == Found(size, None)
    assert _find(_noise(100) + _plain(range(20, 30), b"ram")) == Found(100, RAM)
    assert _find(_noise(100) + _zero(range(300, 400))) == Found(100, None)
    assert _find(_noise(5000)) is None
    assert _find(b"") is None


def test_what_is_too_short() -> None:
    """Broken: what a guest keeps in one page would count as records of its RAM."""
    assert _find(_noise(50) + _zero(range(2, 40)) + _noise(50)) is None
    assert _find(_noise(50) + _plain([2]) + _noise(50)) is None


def test_the_end_of_ram() -> None:
    """Broken: the last pages of RAM would be lost, or an end be taken for certain that is not."""
    last = _zero([5, 6]) + EOS + stream.section_footer(2)
    data = _noise(50) + last
    assert _find(data) is None
    assert _find(data, ram_end=len(data)) == Found(50, None)
    assert _find(data + _noise(3), ram_end=len(data) + 3) is None


def test_parts_of_ram_follow_each_other() -> None:
    """Broken: small parts, as of a guest that hardly writes, would never count."""
    seam = EOS + stream.section_footer(2) + stream.section_part(2)
    other = EOS + stream.section_footer(3) + stream.section_part(3)
    assert _find(_noise(9) + (_zero([7]) + seam) * 40) is not None
    assert _find(_noise(9) + (_zero([7]) + other) * 40) is None


def test_two_chains_over_each_other() -> None:
    """Broken: a guest could lay a chain of records over the true one, and have it read."""
    records = bytearray(_plain(range(100, 140)))
    forged = _plain(range(9, 49))
    for index in range(40):
        # At the same place in each page: as far apart as the true ones.
        at = index * (8 + PAGE) + 100
        records[at : at + 8] = forged[index * (8 + PAGE) :][:8]
    whole = _noise(30) + bytes(records)
    assert _find(whole) is None
    # In step with what came before: the true one.
    assert _find(whole, Step(30 - 5 * (8 + PAGE), 8 + PAGE, 7 * PAGE)) == Found(30, None)


def test_first_header_may_be_damaged() -> None:
    """Broken: a page whose address damage touched would be put elsewhere."""
    data = bytearray(_plain(range(1000, 1020)))
    data[5] = 0
    assert _find(_noise(40) + bytes(data)) == Found(40 + 8 + PAGE, None)


def test_records_of_a_page_that_is_damaged() -> None:
    """Broken: what looks like records at the end of a damaged page would be read with those behind
    it."""
    inside = _zero(range(50, 70))
    data = _noise(40) + inside + _plain(range(1000, 1020))
    assert _find(data) == Found(40 + len(inside), None)


@pytest.mark.parametrize("stride", [9, 8 + PAGE])
def test_pages_that_fill_the_gap(stride: int) -> None:
    """Broken: the first record behind a hole would be left out though it is certain."""
    more = _zero(range(3000, 3200)) if stride == 9 else _plain(range(3000, 3010))
    data = bytes(4 * stride) + more
    found = _find(data, Step(0, stride, 2996 * PAGE))
    assert found == Found(4 * stride, None)


def test_leads_on() -> None:
    """Broken: a bit would be mended that nothing behind it confirms."""
    assert leads_on(memoryview(_plain(range(9))), LAYOUT)
    assert not leads_on(memoryview(_noise(1) + _plain(range(9))), LAYOUT)
    assert not leads_on(memoryview(_plain([1]) + _noise(3000)), LAYOUT)


def test_time_is_linear() -> None:
    """Broken: memory that is full of what looks like records would take time without end."""
    times = []
    for size in (1 << 16, 1 << 19):
        data = (_zero(range(7)) + b"\0")[:64] * (size // 64)
        start = time.process_time()
        _find(data)
        times.append(time.process_time() - start)
    assert times[1] < 8 * 8 * max(times[0], 0.01)
