"""Guests at rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.guest.base import (
    BlockLayout,
    DeviceSection,
    DeviceState,
    GuestError,
    Machine,
    map_block,
)
from vmferry.guest.directory import DirectoryGuest

MACHINE = Machine("pc-i440fx-7.2", 4096, ("events",), bytes(range(16)), True)
LAYOUT = [
    BlockLayout("pc.ram", 1 << 20, 4096),
    BlockLayout("0000:00:02.0/vga.vram", 8192, 4096),
    BlockLayout("../../escape", 4096, 4096),
]
STATE = DeviceState(
    early=(DeviceSection(0, "timer", 0, 2, b"\x00\x01"),),
    sections=(
        DeviceSection(3, "cpu", 0, 12, b"\xff" * 100),
        DeviceSection(9, "cpu", 1, 12, b""),
        DeviceSection(10, "/etc/../..", 0, 1, b"x"),
    ),
    description='{"page_size": 4096, "naïve": 1}\n'.encode(),
    ram_section_id=2,
)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=255).filter(
    lambda name: name.isprintable() and len(name.encode()) <= 255
)
"""As they are on the wire."""


def receive(path: Path, *, running: bool = True) -> None:
    """A whole guest at `path`."""
    guest = DirectoryGuest(str(path))
    guest.prepare(MACHINE, LAYOUT)
    for number, block in enumerate(guest.blocks):
        map_block(block)[-1] = number + 1
    guest.load_devices(MACHINE, STATE)
    guest.invalidate_caches()
    guest.seal(running=running)
    guest.complete(running=running)
    guest.close()


def test_round_trip(tmp_path: Path) -> None:
    """Broken: a received guest could not be sent on as it came."""
    receive(tmp_path / "deep" / "guest")
    guest = DirectoryGuest(str(tmp_path / "deep" / "guest"))
    assert guest.machine == MACHINE
    assert guest.save_devices() == STATE
    assert [(b.name, b.length) for b in guest.blocks] == [(b.name, b.length) for b in LAYOUT]
    assert [int(map_block(block)[-1]) for block in guest.blocks] == [1, 2, 3]
    assert not guest.running
    guest.close()


def test_names_stay_inside(tmp_path: Path) -> None:
    """Broken: a stream's names could write files anywhere."""
    receive(tmp_path / "guest")
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1 + len(LAYOUT) + 4
    assert {path.parts[0] for path in files} == {"guest"}
    assert {path.parts[1] for path in files} == {"guest.json", "ram", "devices"}
    assert max(len(path.parts) for path in files) == 3


@given(name=NAMES)
@settings(deadline=None, max_examples=30)
def test_any_name_comes_back(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Broken: a block with an odd or long name could not be received, or lost its name."""
    path = tmp_path_factory.mktemp("any")
    guest = DirectoryGuest(str(path))
    guest.prepare(MACHINE, [BlockLayout(name, 4096, 4096)])
    guest.load_devices(MACHINE, STATE)
    guest.seal(running=True)
    guest.complete(running=True)
    guest.close()
    again = DirectoryGuest(str(path))
    assert again.blocks[0].name == name
    again.close()


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
    with pytest.raises(GuestError, match="of something else"):
        DirectoryGuest(str(tmp_path)).prepare(MACHINE, LAYOUT)
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


def change(document: Any, where: str, value: Any) -> None:
    """Set a member, "a/0/b" being that of an object in a list in an object."""
    *path, last = where.split("/")
    for part in path:
        document = document[int(part) if part.isdigit() else part]
    document[last] = value


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("format", 99),
        ("machine", None),
        ("machine/page_size", 1000),
        ("machine/uuid", "xyz"),
        ("blocks", {}),
        ("blocks/0/length", 1 << 21),
        ("blocks/0/length", -4096),
        ("blocks/0/length", True),
        ("blocks/1/file", ".."),
        ("blocks/1/file", "missing"),
        ("blocks/1/name", 5),
        ("sections", ["cpu"]),
        ("sections/1/file", "missing"),
        ("sections/1/instance_id", "0"),
        ("description", 1),
        ("ram_section_id", None),
    ],
)
def test_damaged_description_is_one_line(tmp_path: Path, where: str, value: Any) -> None:
    """Broken: a damaged guest.json would be a traceback, or sent as if it were whole."""
    receive(tmp_path)
    file = tmp_path / "guest.json"
    document = json.loads(file.read_text())
    change(document, where, value)
    file.write_text(json.dumps(document))
    with pytest.raises(GuestError, match=r"guest\.json: not a guest: ") as caught:
        DirectoryGuest(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\udcff"])
def test_description_that_is_none(tmp_path: Path, text: str) -> None:
    """Broken: any file called guest.json could be a traceback."""
    (tmp_path / "guest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(GuestError, match="not a guest: "):
        DirectoryGuest(str(tmp_path))
