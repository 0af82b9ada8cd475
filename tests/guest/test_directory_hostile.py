"""Folders that are damaged, or made to do harm: nothing in them is trusted."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmferry.guest import directory_files, directory_rules
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.directory_format import MAX_TEXT
from vmferry.guest.errors import GuestError
from vmferry.guest.parts import BlockLayout, DeviceSection, DeviceState, Machine
from vmferry.sender import stream

from tests.guest.at_rest import LAYOUT, MACHINE, STATE, everything, receive, rewrite

DEEP = "[" * 300 + "]" * 300


def refused(path: Path) -> str:
    """Return the one line with which a folder is refused."""
    with pytest.raises(GuestError) as caught:
        DirectoryGuest(str(path))
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 300 + len(str(path))
    return text


def change(document: Any, where: str, value: Any) -> None:
    """Set a member, "a/0/b" being that of an object in a list in an object."""
    *path, last = where.split("/")
    for part in path:
        document = document[int(part) if part.isdigit() else part]
    document[last] = value


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("format", 99, "format is 99"),
        ("running", 1, "running is 1, not true or false"),
        ("machine", None, "machine is None"),
        ("machine/name", "", "machine.name"),
        ("machine/name", "m" * 40000, "machine.name"),
        ("machine/page_size", 1000, "machine.page_size is 1000"),
        ("machine/page_size", 128, "machine.page_size is 128"),
        ("machine/page_size", 1 << 17, "machine.page_size"),
        ("machine/page_size", 2048, "description: pages have 4096 bytes"),
        ("machine/uuid", "xyz", "machine.uuid"),
        ("machine/uuid", "00", "machine.uuid has 1 bytes"),
        ("machine/capabilities", [None], "machine.capabilities[0]"),
        ("machine/capabilities", ["a", "c" * 256], "machine.capabilities[1]"),
        ("machine/capabilities", ["\ud800"], r"machine.capabilities[0] is '\ud800'"),
        ("machine/capabilities", ["mapped-ram"], "machine.capabilities[0]"),
        ("machine/capabilities", ["c"] * 20000, "machine.capabilities take"),
        ("blocks", {}, "blocks is an object"),
        ("blocks", [], "blocks has 0 entries"),
        ("blocks/0/length", 1 << 21, "blocks[0].file '000-pc.ram' has 1048576 bytes"),
        ("blocks/0/length", -4096, "blocks[0].length is -4096"),
        ("blocks/0/length", 10**4000, "blocks[0].length is 1000"),
        ("blocks/0/length", True, "blocks[0].length is True"),
        ("blocks/1/file", "..", "blocks[1].file is '..'"),
        ("blocks/1/file", "../ram/000-pc.ram", "blocks[1].file is '../ram/000-pc.ram'"),
        ("blocks/1/file", "missing", "blocks[1].file 'missing' No such file"),
        ("blocks/1/file", "000-pc.ram", "blocks[1].file is '000-pc.ram'"),
        ("blocks/1/file", "a\0", r"blocks[1].file is 'a\x00'"),
        ("blocks/1/name", 5, "blocks[1].name is 5"),
        ("blocks/1/name", "pc.ram", "the block of blocks[0].name as well"),
        ("blocks/1/name", "a\n\x1b[31m", r"blocks[1].name is 'a\n\x1b[31m'"),
        ("sections", ["cpu"], "sections[0] is 'cpu', not an object"),
        ("sections/1/file", "missing", "sections[1].file 'missing' No such file"),
        ("sections/1/file", "000-timer", "sections[1].file is '000-timer'"),
        ("sections/0/file", "/etc/passwd", "sections[0].file is '/etc/passwd'"),
        ("sections/1/instance_id", "0", "sections[1].instance_id is '0'"),
        ("sections/1/instance_id", 1 << 32, "sections[1].instance_id is 4294967296"),
        ("sections/1/section_id", 3, "sections[1].section_id is 3"),
        ("sections/1/name", "n" * 256, "sections[1].name"),
        ("sections/1/size", 5, "sections[1].file '002-cpu' has 0 bytes"),
        ("description", 1, "description is 1"),
        ("description", "[]", "description: "),
        ("description", '{"a": "\ud800"}', "description has characters"),
        ("description", f'{{"a": {DEEP}}}', "description is nested"),
        ("description", '{"devices": 1}', "description makes no sense"),
        ("ram_section_id", None, "ram_section_id is None"),
        ("ram_section_id", 9, "sections[1].section_id is 9"),
    ],
)
def test_damaged_description_is_one_line(tmp_path: Path, where: str, value: Any, told: str) -> None:
    """Broken: a damaged guest.json would be a traceback, or sent as if it were whole."""
    receive(tmp_path)
    rewrite(tmp_path, lambda document: change(document, where, value))
    text = refused(tmp_path)
    assert text.startswith(f"{tmp_path}/guest.json: not a guest: ")
    assert told in text


@pytest.mark.parametrize("text", ["", "[]", "5", "{", "[" * 100_000, "\udcff", '{"a": 1e999}'])
def test_description_that_is_none(tmp_path: Path, text: str) -> None:
    """Broken: any file called guest.json could be a traceback."""
    (tmp_path / "guest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(tmp_path).startswith(f"{tmp_path}/guest.json: not a guest: ")


def fifo(path: Path) -> None:
    """Make a FIFO that nobody writes to."""
    os.mkfifo(path)


def device(path: Path) -> None:
    """Make a link to a device that can be read without end."""
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    """Make a Unix socket."""
    there = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(there)


def link(path: Path) -> None:
    """Make a link to a file that would do."""
    (path.parent / "elsewhere").write_bytes(b"\0\1")
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("put", [fifo, device, unix_socket, link, Path.mkdir])
@pytest.mark.parametrize("name", ["guest.json", "ram/000-pc.ram", "devices/000-timer"])
def test_only_regular_files_are_opened(
    tmp_path: Path, put: Callable[[Path], None], name: str
) -> None:
    """Broken: a system file could be sent, or a pipe, or a device, read without end."""
    receive(tmp_path)
    (tmp_path / name).unlink()
    put(tmp_path / name)
    text = refused(tmp_path)
    assert "guest.json: not a guest: " in text
    assert "not a regular file" in text
    assert Path(name).name in text


@pytest.mark.parametrize("put", [fifo, link, Path.mkdir])
def test_files_that_change_under_our_eyes(
    tmp_path: Path, put: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: what takes a file's name after a look at it would be opened, or block."""
    receive(tmp_path)
    (tmp_path / "devices" / "000-timer").unlink()
    put(tmp_path / "devices" / "000-timer")
    monkeypatch.setattr(directory_files, "kind_of", lambda *_: "a regular file")
    monkeypatch.setattr(directory_files, "open_folder", open_without_a_look)
    assert "early[0].file '000-timer' " in refused(tmp_path)


def open_without_a_look(folder: int, name: str) -> int:
    """Open a folder of the guest without the checks."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)


@pytest.mark.parametrize("name", ["ram", "devices"])
def test_folders_are_the_guests_own(tmp_path: Path, name: str) -> None:
    """Broken: a link in place of a folder would bring files from anywhere."""
    path = tmp_path / "guest"
    receive(path)
    (path / name).rename(tmp_path / "other")
    (path / name).symlink_to(tmp_path / "other")
    assert f"folder {name!r} is a symbolic link, not a folder" in refused(path)


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    """Broken: a sparse file would take all memory."""
    receive(tmp_path)
    os.truncate(tmp_path / "devices" / "001-cpu", directory_rules.MAX_DEVICE_STATE + 1)
    assert "sections[0].file '001-cpu' has " in refused(tmp_path)
    os.truncate(tmp_path / "devices" / "001-cpu", 100)
    os.truncate(tmp_path / "guest.json", MAX_TEXT + 1)
    assert f"has {MAX_TEXT + 1} bytes" in refused(tmp_path)


@pytest.mark.parametrize("incoming", [False, True])
def test_ram_that_no_process_can_map(tmp_path: Path, incoming: bool) -> None:
    """Broken: RAM larger than address space would end a migration with a traceback."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    layout = BlockLayout("pc.ram", 1 << 40, 4096)
    if not incoming:
        guest = DirectoryGuest(str(tmp_path))
        guest.prepare(MACHINE, [layout])
        guest.load_devices(MACHINE, STATE)
        guest.seal(running=True)
        guest.complete(running=True)
        guest.close()
    resource.setrlimit(resource.RLIMIT_AS, (1 << 39, limits[1]))
    try:
        if not incoming:
            assert "blocks[0] of 1099511627776 bytes: no address space" in refused(tmp_path)
            return
        guest = DirectoryGuest(str(tmp_path))
        with pytest.raises(GuestError, match="no address space"):
            guest.prepare(MACHINE, [layout])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert everything(tmp_path) == {}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**20, 10**300)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=300)
    | st.sampled_from(["pc.ram", "cpu", "000-pc.ram", "000-timer", "..", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged(draw: st.DrawFn, whole: str) -> bytes:
    """Return a guest.json with a missing or changed member, or with changed bytes."""
    document = json.loads(whole)
    for _ in range(draw(st.integers(1, 2))):
        place: Any = document
        keys: list[Any] = list(place)
        while True:
            key = draw(st.sampled_from(keys))
            inner = place[key]
            keys = list(inner) if isinstance(inner, dict) else []
            keys = list(range(len(inner))) if isinstance(inner, list) else keys
            if not keys or draw(st.integers(0, 3)) == 0:
                break
            place = inner
        if draw(st.booleans()):
            place[key] = draw(VALUES)
        elif isinstance(place, list) and draw(st.booleans()):
            place.append(place[key])
        else:
            del place[key]
        if not document:
            break
    text = bytearray(json.dumps(document).encode())
    if draw(st.integers(0, 2)) == 0:
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a whole guest, and its guest.json."""
    path = tmp_path_factory.mktemp("hostile")
    receive(path)
    return path, (path / "guest.json").read_text()


def attempt(path: Path) -> None:
    """Open a guest and, if it is accepted, make the stream's pieces of it."""
    guest = DirectoryGuest(str(path))
    state = guest.save_devices()
    pieces = [
        stream.head(guest, state, guest.machine.capabilities, return_path=True),
        stream.ram_start(guest, state.ram_section_id, flush=False),
        stream.devices(state),
        stream.closing(state),
    ]
    guest.close()
    assert all(isinstance(piece, bytes) for piece in pieces)


@given(data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_damage_is_refused_or_can_be_sent(whole: tuple[Path, str], data: st.DataObject) -> None:
    """Broken: a damaged guest.json would be a traceback, here or while its guest is sent."""
    path, text = whole
    (path / "guest.json").write_bytes(data.draw(damaged(text)))
    try:
        attempt(path)
    except GuestError as error:
        said = str(error)
    else:
        said = "accepted"
    assert said.isprintable()


@pytest.mark.parametrize(
    ("machine", "layout"),
    [
        (Machine(""), LAYOUT),
        (MACHINE, []),
        (MACHINE, [*LAYOUT, LAYOUT[0]]),
        (MACHINE, [BlockLayout(name, 1 << 45, 4096) for name in "abc"]),
        (MACHINE, [BlockLayout("odd", 4097, 4096)]),
    ],
)
def test_machine_that_could_not_be_sent_is_not_received(
    tmp_path: Path, machine: Machine, layout: list[BlockLayout]
) -> None:
    """Broken: a guest would be given up by its source, and be of no use here."""
    guest = DirectoryGuest(str(tmp_path / "guest"))
    with pytest.raises(GuestError, match="cannot be kept here"):
        guest.prepare(machine, layout)
    assert everything(tmp_path) == {}


@pytest.mark.parametrize(
    "state",
    [
        DeviceState((), (DeviceSection(2, "cpu", 0, 1, b""),), None, 2),
        DeviceState((), (DeviceSection(3, "ram", 0, 1, b""),), None, 2),
        DeviceState((DeviceSection(3, "\n", 0, 1, b""),), (), None, 2),
        DeviceState((), (), b'{"page_size": 8192}', 2),
        DeviceState((), (), f'{{"a": {DEEP}}}'.encode(), 2),
    ],
)
def test_devices_that_could_not_be_sent_are_not_received(
    tmp_path: Path, state: DeviceState
) -> None:
    """Broken: a guest would be given up by its source, and be of no use here."""
    guest = DirectoryGuest(str(tmp_path / "guest"))
    guest.prepare(MACHINE, LAYOUT)
    with pytest.raises(GuestError, match="cannot be kept here"):
        guest.load_devices(MACHINE, state)
    guest.abort_incoming()
    assert everything(tmp_path) == {}
