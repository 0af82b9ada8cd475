"""The outline of an ordinary stream, against all that the reader finds in it."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol import events
from vmferry.protocol.devices.description import Length, described
from vmferry.protocol.errors import StreamError
from vmferry.protocol.fast.outline import NotOrdinary, _Walk, outline
from vmferry.tools.dump.pieces import summarise
from vmferry.tools.dump.summary import from_outline

from tests.protocol.kinds import KINDS
from tests.streams import PAGE, closing, device, every_event, ram_part, ram_start, to_bytes

BLOCKS = (events.RamBlock("pc.ram", 9000 * PAGE), events.RamBlock("vga", 4 * PAGE))
OPENING = (events.Header(0), events.Configuration(0, "pc-i440fx-7.2"))
DEVICES = (device(3, "timer", b"\x01" * 20), device(4, "cpu", b"\x7e\0\0\0\4\0\x05" * 9))

RUNS = st.lists(
    st.tuples(
        st.integers(0, 8999),
        # Up to where runs are looked at in steps, and beyond a group of pages.
        st.integers(1, 40) | st.integers(4000, 5000),
        st.sampled_from([None, 0, 0, 7]),
        st.booleans(),
    ),
    max_size=8,
)


def _run(first: int, count: int, fill: int | None, continued: bool) -> events.PageRun:
    numbers = np.arange(first, min(first + count, 9000), dtype=np.uint64)
    if fill is None:
        numbers = numbers[:40]
    data = None if fill is not None else np.zeros((len(numbers), PAGE), np.uint8)
    return events.PageRun(0, BLOCKS[0], 0, numbers * np.uint64(PAGE), data, fill or 0, continued)


def _ordinary(*pieces: list[events.Event]) -> bytes:
    parts = [event for piece in pieces for event in piece]
    before, between = events.Command(0, 2, b"ping"), events.Command(0, 11)
    start, end = ram_start(BLOCKS), closing(DEVICES, early=())
    return to_bytes([*OPENING, before, *start, between, *parts, between, *end])


def _of_runs(runs: list[tuple[int, int, int | None, bool]]) -> bytes:
    first = ram_part(_run(0, 1, 0, False))
    return _ordinary(first, *(ram_part(_run(*run)) for run in runs))


def _told_by_the_reader(stream: bytes) -> dict[str, Any]:
    return summarise(io.BytesIO(stream)).as_json()


@given(RUNS)
def test_it_tells_what_the_reader_tells(runs: list[tuple[int, int, int | None, bool]]) -> None:
    """Broken: `dump` would show other pages, rounds or devices than the stream has."""
    stream = _of_runs(runs)
    assert from_outline(outline(stream)).as_json() == _told_by_the_reader(stream)


def _if_ordinary(stream: bytes) -> bool:
    """Check that outline and reader agree if the stream is ordinary; return whether it is."""
    try:
        found = outline(stream)
    except NotOrdinary:
        return False
    assert from_outline(found).as_json() == _told_by_the_reader(stream)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_left_to_the_reader(kind: str) -> None:
    """Broken: a stream of that kind would be shown as something that it is not."""
    _if_ordinary(to_bytes(KINDS[kind]))
    assert not _if_ordinary(to_bytes(every_event()))


RUNS_OF_ALL_KINDS = [(0, 60, None, False), (60, 300, 0, True), (5, 20, 0, True), (9, 3, None, True)]


def test_damage_is_left_to_the_reader() -> None:
    """Broken: damage that `verify` finds would be passed over by `dump`."""
    whole, chance = _of_runs(RUNS_OF_ALL_KINDS), random.Random(7)
    headers = [at for at in range(len(whole)) if at < 400 or whole[at] or at > len(whole) - 999]
    for at in chance.sample(headers, 1500):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << chance.randrange(8)
        _if_ordinary(bytes(damaged))
    for size in chance.sample(range(len(whole)), 300):
        assert not _if_ordinary(whole[:size])


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s + b"\0",
        lambda s: s.replace(b"\x7e\0\0\0\3", b"\x7e\0\0\0\5"),
        lambda s: s.replace(b"\x04\0\0\0\4\3cpu", b"\x04\0\0\0\3\3cpu").replace(
            b"\x7e\0\0\0\4\0\6", b"\x7e\0\0\0\3\0\6"
        ),
        lambda s: s.replace(b"\x07\0\0\0\x0d", b"\x0f\0\0\0\x0d"),
        lambda s: s.replace(b"\x08\0\x02\0\x04ping", b"\x08\0\x03\0\x04ping"),
        lambda s: s.replace(b"\x08\0\x0b\0\0", b"\x08\0\x0b\0\x01."),
        lambda s: s.replace(b"\x03vga", b"\x06pc.ram"),
        lambda s: s.replace(b"\x06pc.ram", b"\x06pc\nram"),
        lambda s: s.replace(b'"page_size": 4096', b'"page_size": 8192'),
        lambda s: s.replace(b'"size": 20', b'"size": 21'),
        lambda s: s.replace((8990 * PAGE | 0x22).to_bytes(8, "big"), b"\xff" * 6 + b"\xf0\x22"),
        lambda s: s.replace((8999 * PAGE | 0x22).to_bytes(8, "big"), b"\0\0\0\0\x02\x32\x80\x22"),
    ],
)
def test_what_is_not_as_expected(change: Any) -> None:
    """Broken: something wrong in a stream, or behind it, would be passed over."""
    whole = _of_runs([(8990, 10, 0, True)])
    changed = change(whole)
    assert _if_ordinary(whole)
    assert changed != whole
    assert not _if_ordinary(changed)


def test_rounds_without_end() -> None:
    """Broken: each repetition of a page would cost as much as a round."""
    repeated = [ram_part(_run(0, 1, 0, False)) for _ in range(1200)]
    assert _if_ordinary(_ordinary(*repeated[:900]))
    assert not _if_ordinary(_ordinary(*repeated))


def test_more_memory_than_can_be_kept_track_of() -> None:
    """Broken: a stream that announces any amount of RAM would take a byte for each page of it."""
    start = ram_start([events.RamBlock("pc.ram", 1 << 40)])
    assert not _if_ordinary(to_bytes([*OPENING, *start, *closing(DEVICES, early=())]))


def test_lengths_that_would_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a length that lies, or what stands behind RAM, would be copied whatever its size."""
    whole = _of_runs(RUNS_OF_ALL_KINDS)
    named = whole.replace(b"\0\0\0\x0dpc-i440fx-7.2", b"\0\0\1\0" + b"m" * 256)
    assert len(_told_by_the_reader(named)["machine"]) == 256
    assert not _if_ordinary(named)
    text = len(whole) - whole.rindex(b"\0\6")
    monkeypatch.setattr("vmferry.protocol.fast.outline.MAX_DESCRIPTION", text)
    assert _if_ordinary(whole)
    monkeypatch.setattr("vmferry.protocol.fast.outline.MAX_DESCRIPTION", text - 1)
    assert not _if_ordinary(whole)


def test_a_description_of_more_than_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: sizes without sense would end `dump` in a traceback."""
    whole = _of_runs(RUNS_OF_ALL_KINDS)
    monkeypatch.setattr(
        "vmferry.protocol.fast.outline.described",
        lambda told: [replace(one, length=Length(1 << 66, True)) for one in described(told)],
    )
    with pytest.raises(NotOrdinary):
        outline(whole)


def test_zero_pages_in_order_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a big guest that is mostly empty would take several times as long."""
    singly: list[int] = []
    look = _Walk._in_order_singly

    def counted(*arguments: Any) -> int:
        singly.append(look(*arguments))
        return singly[-1]

    monkeypatch.setattr(_Walk, "_in_order_singly", counted)
    assert _if_ordinary(_of_runs([(1, 8000, 0, True)]))
    assert sum(singly) < 800


def test_what_was_passed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a stream would take as much memory as it has bytes."""
    step = 16 * PAGE
    monkeypatch.setattr("vmferry.protocol.fast.outline._STEP", step)
    stream, passed = _of_runs([(0, 40, None, False)] * 4 + [(0, 5000, 0, False)]), [(0, 0)]
    assert outline(stream, lambda start, end: passed.append((start, end))).size == len(stream)
    assert all(before[1] == after[0] for before, after in pairwise(passed))
    assert max(end - start for start, end in passed) < 3 * step
    assert passed[-1][1] > 160 * PAGE


def test_an_ordinary_stream_is_shown_without_slow_libraries(tmp_path: Path) -> None:
    """Broken: `dump` would take three times as long for most streams."""
    path = tmp_path / "stream"
    path.write_bytes(_of_runs(RUNS_OF_ALL_KINDS))
    script = (
        "import sys; from vmferry.tools.cli import main; main(standalone_mode=False);"
        "print({'numpy', 'construct', 'zstandard', 'rich'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, "dump", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[0] == "machine      pc-i440fx-7.2"
    assert shown.splitlines()[-1] == "set()"


def test_all_ways_of_showing_agree(tmp_path: Path) -> None:
    """Broken: `dump` would say one thing of a file and another of the same stream in a pipe."""
    stream = _of_runs(RUNS_OF_ALL_KINDS)
    path = tmp_path / "stream"
    path.write_bytes(stream)
    for options in ((), ("--json",), ("--devices",)):
        command = [sys.executable, "-m", "vmferry.tools", "dump", *options]
        from_file = subprocess.run([*command, str(path)], capture_output=True, check=True)
        piped = subprocess.run([*command, "-"], input=stream, capture_output=True, check=True)
        assert from_file.stdout == piped.stdout


def test_the_reader_says_what_is_wrong(vmferry: Any) -> None:
    """Broken: a damaged stream in a file would be refused without a word of where."""
    whole = _of_runs(RUNS_OF_ALL_KINDS)
    with pytest.raises(StreamError):
        _told_by_the_reader(whole[:-1])
    result = vmferry.call("dump", vmferry.write("stream", whole[:-1]))
    assert result.exit_code == 1
    assert "the stream ends early" in result.stderr
