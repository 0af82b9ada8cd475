"""The harness finds what is wrong, and nothing else: its parts, on records made by hand."""

from __future__ import annotations

import os
import signal
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .judge import judge
from .marks import AnswerMarks, Mark, StreamMarks
from .plan import Fault, Plan, Signal, Trigger, make_plan
from .run import Done, Record
from .watch import Watch

PING = b"\x08\x00\x02\x00\x04"
DESCRIPTION = b'{"page_size": 4096, "devices": []}'
END = b"\x00\x06" + struct.pack(">I", len(DESCRIPTION)) + DESCRIPTION
STREAM = b"p" * 100 + b"\x7e\0\0\0\3" + END + PING + b"vmf\x03"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200))
def test_marks_are_found_however_bytes_arrive(lengths: list[int]) -> None:
    """Broken: the end of a stream that arrives in two pieces would be no mark."""
    marks, found, rest = StreamMarks(), [], STREAM
    for length in [*lengths, len(STREAM)]:
        found += marks.feed(rest[:length])
        rest = rest[length:]
    end = 105 + len(END)
    assert found == [Mark("end", 105, end), Mark("confirm", end, end + 9)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_answers_are_found_however_bytes_arrive(lengths: list[int]) -> None:
    """Broken: half a SHUT would be a whole one, or none."""
    data = struct.pack(">HHIHHIHHI", 2, 4, 0x766D6602, 1, 4, 0, 2, 4, 0x766D6603)
    marks, found, rest = AnswerMarks(), [], data
    for length in [*lengths, len(data)]:
        found += marks.feed(rest[:length])
        rest = rest[length:]
    assert [mark.name for mark in found] == ["confirms", "shut", "confirmed"]


def test_same_seed_makes_same_plan() -> None:
    """Broken: a failing run could not be done again."""
    assert make_plan(7, 11, long=True) == make_plan(7, 11, long=True)
    assert len({str(make_plan(7, number, long=True)) for number in range(50)}) == 50


def test_source_that_beats_later_is_a_second_guest(tmp_path: Path) -> None:
    """Broken: two guests that run would not be seen."""
    watch = Watch(tmp_path)
    _beat(watch.source.path, 1.0, "10 5 1")
    _beat(watch.destination.path, 1.2, "11 7 1")
    watch.look()
    assert watch.two is None
    _beat(watch.source.path, 1.4, "10 5 0")
    watch.look()
    assert watch.two is None
    _beat(watch.source.path, 1.5, "10 6 1")
    watch.look()
    assert watch.two == "the source ran 0.300 s after the destination had begun to"


def _beat(path: Path, at: float, text: str) -> None:
    path.write_text(text)
    os.utime(path, (at, at))


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Return the record of a run in which the guest moved and nothing happened."""
    (tmp_path / "tmp").mkdir()
    plan = replace(
        make_plan(1, 1, long=False),
        source="send",
        destination="receive",
        guest="synthetic",
        options=(),
        return_path=True,
        deeds=(),
    )
    record = Record(plan, tmp_path)
    record.marks = {"end": 1.0, "before shut": 2.0, "shut": 2.1, "before confirm": 3, "confirm": 3}
    record.runs = {"source": False, "destination": True}
    record.status = {"source": 0, "destination": 0}
    record.began = True
    record.stderr = {"source": "", "destination": ""}
    return record


def _killed(side: str, role: str, at: float) -> Done:
    deed = Signal(Trigger("end"), side, role, signal.SIGKILL)
    return Done(at, deed, 1, "")


def _faults(record: Record) -> str:
    return "; ".join(judge(record).faults)


def test_guest_that_moved_is_no_fault(record: Record) -> None:
    """Broken: every run would fail."""
    assert judge(record).faults == []
    assert judge(record).outcome == "runs at the destination"


@pytest.mark.parametrize(
    ("done", "marks", "lost"),
    [
        (("source", "command", 1.5), (), True),
        (("destination", "transport", 2.5), (), True),
        (("source", "guest", 0.5), ("before shut", "shut", "confirm"), False),
        (("source", "guest", 2.5), (), True),
        (("destination", "guest", 2.5), (), True),
        (("destination", "guest", 3.5), (), False),
        (("destination", "guest", 1.5), (), True),
    ],
)
def test_only_a_holder_may_cost_the_guest(
    record: Record, done: tuple[str, str, float], marks: tuple[str, ...], lost: bool
) -> None:
    """Broken: a lost guest would be excused by the death of any process, or by none."""
    record.runs = {"source": False, "destination": False}
    record.status = {"source": 1, "destination": 1}
    record.done = [_killed(*done)]
    for name in marks:
        del record.marks[name]
    assert ("LOST" in _faults(record)) is lost


@pytest.mark.parametrize(("at", "fault"), [(2.5, False), (3.5, True)])
def test_guest_may_be_kept_only_in_the_window(record: Record, at: float, fault: bool) -> None:
    """Broken: a guest that nobody lets run would be as good as one that runs."""
    record.runs = {"source": False, "destination": False}
    record.status = {"source": 1, "destination": 1}
    record.taken_up = ""
    record.stderr["source"] = "vmferry: the destination has the whole guest"
    record.done = [Done(at, Fault(Trigger("shut"), "reset"), 1, "")]
    assert ("KEPT" in _faults(record)) is fault
    if not fault:
        record.stderr["source"] = "vmferry: broken"
        record.taken_up = "vmferry: process 1 keeps no guest"
        assert "does not say" in _faults(record)
        assert "NOT TAKEN UP: vmferry: process 1" in _faults(record)


def test_what_is_left_is_a_fault(record: Record) -> None:
    """Broken: processes, files, tracebacks and two guests would not be seen."""
    record.two = "both"
    record.left = ["source command"]
    record.stderr["source"] = "Traceback (most recent call last):\nKeyError: 1"
    (record.folder / "tmp" / "pymp-x").mkdir()
    (record.folder / "link").touch()
    faults = _faults(record)
    for what in ("TWO", "source command", "KeyError: 1", "pymp-x", "socket is left: link"):
        assert what in faults


def test_folder_without_a_guest_is_left(record: Record) -> None:
    """Broken: what a failed migration made on the disk would stay."""
    record.plan = replace(record.plan, guest="dir")
    record.runs = {"source": True, "destination": False}
    record.status = {"source": 1, "destination": 1}
    (record.folder / "some" / "where").mkdir(parents=True)
    assert _faults(record) == "a folder is left: some where"


def test_plans_do_all_there_is_to_do() -> None:
    """Broken: some signal, process, link or command would never be tried."""
    plans: list[Plan] = [make_plan(1, number, long=False) for number in range(400)]
    signals = {(d.number, d.side, d.role) for p in plans for d in p.deeds if isinstance(d, Signal)}
    faults = {(d.kind, d.direction) for p in plans for d in p.deeds if isinstance(d, Fault)}
    ends = {(plan.source, plan.destination, plan.guest, plan.return_path) for plan in plans}
    assert len(signals) >= 40
    assert len(faults) == 5 * 3 + 2
    assert len(ends) == 12


@pytest.mark.parametrize(("line", "fault"), [("__init__.py", False), ("tools/__main__.py", True)])
def test_ctrl_c_before_the_command_has_begun(record: Record, line: str, fault: bool) -> None:
    """Broken: a traceback of the command would be taken for one of the interpreter's start."""
    head = 'Traceback (most recent call last):\n  File "runpy"\n'
    record.stderr["source"] = f'{head}  File "/at/{line}", line 1\n\nKeyboardInterrupt\n'
    assert ("Traceback" in _faults(record)) is fault
