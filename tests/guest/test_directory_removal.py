"""Test what is removed of an incoming guest at rest whose coordinator died before it was whole."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from vmferry.guest import directory_removal
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.directory_removal import Remover

from tests.guest.at_rest import LAYOUT, MACHINE, STATE, assert_whole, everything, receive

PROGRAM = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())()"
STEPS = ("nothing", "prepare", "load", "seal")


def remover_behind(path: Path, step: str) -> tuple[DirectoryGuest, Remover]:
    """Take an incoming guest so far; return it, and what its coordinator handed out by then."""
    guest = DirectoryGuest(str(path))
    remover = guest.remover()
    if step != "nothing":
        guest.prepare(MACHINE, LAYOUT)
        remover = guest.remover()
    if step in ("load", "seal"):
        guest.load_devices(MACHINE, STATE)
    if step == "seal":
        guest.seal(running=True)
    assert remover is not None
    return guest, remover


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("there", [False, True])
def test_all_of_it_goes(tmp_path: Path, step: str, there: bool) -> None:
    """Broken: what a command that was killed had made would be in the way of the next one."""
    path = tmp_path / "a" / "guest"
    if there:
        path.mkdir(parents=True)
    before = everything(tmp_path)
    guest, remover = remover_behind(path, step)
    # The locks of a process that dies go with it.
    guest.close()
    subprocess.run([sys.executable, "-c", PROGRAM], input=pickle.dumps(remover), check=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("made", ["a", "a/guest", "a/guest/ram", "a/guest/ram/000-pc.ram"])
def test_coordinator_that_died_while_it_prepared(tmp_path: Path, made: str) -> None:
    """Broken: a kill at the very beginning would leave folders behind."""
    guest, remover = remover_behind(tmp_path / "a" / "guest", "nothing")
    if "." in made:
        (tmp_path / made).parent.mkdir(parents=True)
        (tmp_path / made).touch()
    else:
        (tmp_path / made).mkdir(parents=True)
    guest.close()
    remover()
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("step", STEPS)
def test_complete_guest_stays(tmp_path: Path, step: str) -> None:
    """Broken: a guest that arrived here meanwhile would be removed (law 5)."""
    guest, remover = remover_behind(tmp_path / "guest", step)
    guest.abort_incoming()
    receive(tmp_path / "guest")
    remover()
    assert_whole(tmp_path / "guest")


def test_guest_that_another_receive_kept_stays(tmp_path: Path) -> None:
    """Broken: a guest that waits to be taken up would be removed (law 5)."""
    path = tmp_path / "guest"
    guest, early = remover_behind(path, "nothing")
    guest.close()
    other, late = remover_behind(path, "seal")
    other.keep()
    before = everything(path)
    early()
    replace(late, identity=(0, 0))()
    assert everything(path) == before


def test_folder_in_use_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a guest would be removed while it is received."""
    monkeypatch.setattr(directory_removal, "_LOCK_WITHIN", 0.05)
    guest, remover = remover_behind(tmp_path / "guest", "prepare")
    before = everything(tmp_path)
    remover()
    assert everything(tmp_path) == before
    guest.abort_incoming()


def test_files_of_others_stay(tmp_path: Path) -> None:
    """Broken: what somebody else put beside the guest would go with it."""
    guest, remover = remover_behind(tmp_path / "guest", "load")
    mine = {"guest/notes": b"1", "guest/ram/notes": b"2", "guest/devices/000-link": b"3"}
    (tmp_path / "guest" / "notes").write_bytes(b"1")
    (tmp_path / "guest" / "ram" / "notes").write_bytes(b"2")
    (tmp_path / "target").write_bytes(b"3")
    (tmp_path / "guest" / "devices" / "000-link").symlink_to(tmp_path / "target")
    guest.close()
    remover()
    files = {name: data for name, data in everything(tmp_path).items() if isinstance(data, bytes)}
    assert files == mine | {"target": b"3"}
