"""Test guests at rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmferry.guest import directory
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import GuestError
from vmferry.guest.parts import BlockLayout, DeviceSection, DeviceState, Machine

from tests.guest.at_rest import LAYOUT, MACHINE, STATE, assert_whole, receive, rewrite

NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=63) | st.just(
    "n" * 255
)
"""Names of the RAM blocks on the wire."""


def test_round_trip(tmp_path: Path) -> None:
    """Broken: a received guest could not be sent on as it came."""
    receive(tmp_path / "deep" / "guest")
    assert_whole(tmp_path / "deep" / "guest")


def test_names_stay_inside(tmp_path: Path) -> None:
    """Broken: a stream's names could write files anywhere."""
    receive(tmp_path / "guest")
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1 + len(LAYOUT) + 4
    assert {path.parts[0] for path in files} == {"guest"}
    assert {path.parts[1] for path in files} == {"guest.json", "ram", "devices"}
    assert max(len(path.parts) for path in files) == 3


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Draw any machine that a configuration section can name."""
    return Machine(
        name=draw(NAMES),
        page_size=1 << draw(st.integers(8, 16)),
        capabilities=draw(st.none() | st.lists(NAMES, max_size=3).map(tuple)),
        uuid=draw(st.none() | st.binary(min_size=16, max_size=16)),
        page_bits_sent=draw(st.booleans()),
    )


@st.composite
def states(draw: st.DrawFn) -> DeviceState:
    """Draw any devices that a stream can have, also with equal names and instance ids."""
    number = st.integers(0, (1 << 32) - 1)
    ids = draw(st.lists(number, min_size=1, max_size=6, unique=True))
    names = st.sampled_from(["cpu", "isa-ide"]) | NAMES
    found = [
        DeviceSection(i, draw(names), draw(st.integers(0, 1)), draw(number), draw(st.binary()))
        for i in ids[1:]
    ]
    early = draw(st.integers(0, len(found)))
    return DeviceState(tuple(found[:early]), tuple(found[early:]), b'{"a": "\xc3\xaf"}', ids[0])


@given(machine=machines(), state=states(), block=NAMES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_received_is_what_is_sent(
    machine: Machine, state: DeviceState, block: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Broken: a guest with odd names, ids or pages could not be kept, or would leave changed."""
    path = tmp_path_factory.mktemp("any")
    guest = DirectoryGuest(str(path))
    guest.prepare(machine, [BlockLayout(block, 1 << 17, machine.page_size)])
    guest.load_devices(machine, state)
    guest.seal(running=True)
    guest.complete(running=True)
    guest.close()
    again = DirectoryGuest(str(path))
    assert (again.machine, again.save_devices()) == (machine, state)
    assert [(b.name, b.length, b.page_size) for b in again.blocks] == [
        (block, 1 << 17, machine.page_size)
    ]
    again.close()


@pytest.mark.parametrize("many", [0, 1000])
def test_all_devices_last(tmp_path: Path, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: many devices would be written in another way, and one of them could be missing."""
    monkeypatch.setattr(directory, "MANY_FILES", many)
    receive(tmp_path / "guest")
    assert_whole(tmp_path / "guest")


def test_folder_of_an_earlier_version(tmp_path: Path) -> None:
    """Broken: guests that were saved before sizes were written down could not be sent."""
    receive(tmp_path)

    def without_sizes(document: Any) -> None:
        for section in (*document["early"], *document["sections"]):
            del section["size"]

    rewrite(tmp_path, without_sizes)
    for path in tmp_path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert_whole(tmp_path)


def test_ram_is_sparse(tmp_path: Path) -> None:
    """Broken: an idle guest of a terabyte would need a terabyte of disk."""
    guest = DirectoryGuest(str(tmp_path))
    guest.prepare(MACHINE, [BlockLayout("big", 1 << 36, 4096)])
    (file,) = (tmp_path / "ram").iterdir()
    assert file.stat().st_size == 1 << 36
    assert file.stat().st_blocks == 0
    guest.abort_incoming()


@pytest.mark.parametrize("loaded", [False, True])
def test_failed_receive_leaves_nothing(tmp_path: Path, loaded: bool) -> None:
    """Broken: a half guest could be taken for a whole one, or stand in the way of the next try."""
    (tmp_path / "notes").write_text("mine")
    for path in (tmp_path, tmp_path / "new"):
        guest = DirectoryGuest(str(path))
        guest.prepare(MACHINE, LAYOUT)
        if loaded:
            guest.load_devices(MACHINE, STATE)
        guest.abort_incoming()
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_no_guest_before_complete(tmp_path: Path) -> None:
    """Broken: a receiver killed before the end would leave what looks like a guest."""
    guest = DirectoryGuest(str(tmp_path))
    guest.prepare(MACHINE, LAYOUT)
    guest.load_devices(MACHINE, STATE)
    guest.close()
    with pytest.raises(GuestError, match="no guest here"):
        _ = DirectoryGuest(str(tmp_path)).machine


def test_refuses_a_second_guest(tmp_path: Path) -> None:
    """Broken: receiving would destroy the guest that is there."""
    receive(tmp_path)
    guest = DirectoryGuest(str(tmp_path))
    with pytest.raises(GuestError, match="holds a guest already"):
        guest.prepare(MACHINE, LAYOUT)
    guest.close()
    (tmp_path / "guest.json").unlink()
    guest = DirectoryGuest(str(tmp_path))
    with pytest.raises(GuestError, match="of something else"):
        guest.prepare(MACHINE, LAYOUT)
    guest.close()
    assert len(list((tmp_path / "ram").iterdir())) == len(LAYOUT)


def test_prepare_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Broken: RAM larger than any file would be a traceback, and leave files."""
    guest = DirectoryGuest(str(tmp_path / "guest"))
    with pytest.raises(GuestError, match="guest: "):
        guest.prepare(MACHINE, [*LAYOUT, BlockLayout("huge", (1 << 63) - 4096, 4096)])
    assert list(tmp_path.iterdir()) == []


def test_says_whether_it_was_to_run(tmp_path: Path) -> None:
    """Broken: nobody would know whether a saved guest was paused."""
    for running in (False, True):
        receive(tmp_path / str(running), running=running)
        document = json.loads((tmp_path / str(running) / "guest.json").read_text())
        assert document["running"] is running
