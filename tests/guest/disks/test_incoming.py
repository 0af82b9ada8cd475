"""Images of an incoming guest: locked, and marked as incomplete until they are whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from vmferry.guest.base import Guest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import GuestError

from tests.disks import MIB, ODD, make_guest, make_room, write_image
from tests.guest.at_rest import LAYOUT, MACHINE, arrived, everything

LOCKS = """
import sys
from vmferry.guest.disks.image import lock
image = open(sys.argv[1], "r+b")
lock(image.fileno(), sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def coming(tmp_path: Path) -> Iterator[Guest]:
    """Return a guest of which only the disks are missing."""
    with closing(arrived(tmp_path / "guest")) as guest:
        yield guest


def finish(guest: Guest) -> None:
    guest.invalidate_caches()
    guest.seal(running=True)
    guest.complete(running=True)
    guest.close()


def test_a_guest_with_disks_is_kept(tmp_path: Path) -> None:
    """Broken: a guest at rest would lose its disks, or they would change."""
    make_guest(tmp_path / "guest", {"disk0": ODD, "../b": MIB})
    write_image(tmp_path / "same", ODD, seed=5 * 7 + ord("0"))
    with closing(DirectoryGuest(str(tmp_path / "guest"))) as guest:
        assert [(disk.name, disk.size) for disk in guest.disks] == [("disk0", ODD), ("../b", MIB)]
        assert os.pread(guest.disks[0].fd, ODD, 0) == (tmp_path / "same").read_bytes()
    assert {path.name for path in (tmp_path / "guest" / "disks").iterdir()} == {"disk0", "..%2Fb"}


def test_an_image_is_incomplete_until_the_guest_is_sealed(tmp_path: Path) -> None:
    """Broken: somebody could start a guest from half a disk."""
    make_room(tmp_path / "guest", {"old": MIB})
    folder = tmp_path / "guest" / "disks"
    with closing(arrived(tmp_path / "guest")) as guest:
        guest.prepare_disk("old")
        os.ftruncate(guest.prepare_disk("new").fd, MIB)
        guest.invalidate_caches()
        assert {path.name for path in folder.iterdir()} == {"old.incomplete", "new.incomplete"}
        guest.seal(running=True)
        assert {path.name for path in folder.iterdir()} == {"old", "new"}


@pytest.mark.parametrize("sealed", [False, True])
def test_what_a_failure_leaves(tmp_path: Path, sealed: bool) -> None:
    """Broken: half an image would look whole, or a user's image be removed."""
    make_room(tmp_path / "guest", {"old": MIB})
    guest = arrived(tmp_path / "guest")
    guest.prepare_disk("old")
    os.ftruncate(guest.prepare_disk("new").fd, MIB)
    if sealed:
        guest.invalidate_caches()
        guest.seal(running=True)
    guest.abort_incoming()
    assert set(everything(tmp_path / "guest")) == {"disks", "disks/old.incomplete"}
    with closing(arrived(tmp_path / "guest")) as again:
        with pytest.raises(GuestError, match="half an image") as error:
            again.prepare_disk("old")
        assert "\n" not in str(error.value)
        again.abort_incoming()


def test_a_killed_command_leaves_nothing_of_its_own(tmp_path: Path) -> None:
    """Broken: images that nobody knows of would fill the disk."""
    make_room(tmp_path / "guest", {"old": MIB})
    guest = DirectoryGuest(str(tmp_path / "guest"))
    assert guest.remover() is not None
    guest.prepare(MACHINE, LAYOUT)
    guest.prepare_disk("old")
    guest.prepare_disk("new")
    remover = guest.remover()
    guest.close()
    assert remover is not None
    remover()
    assert set(everything(tmp_path / "guest")) == {"disks", "disks/old.incomplete"}


def take_disk(path: Path) -> None:
    with closing(arrived(path)) as guest:
        guest.prepare_disk("disk0")


def open_folder(path: Path) -> None:
    DirectoryGuest(str(path))


@pytest.mark.parametrize("arrives", [False, True])
def test_an_image_in_use_is_refused(tmp_path: Path, arrives: bool) -> None:
    """Broken: two programs would write the same disk."""
    (make_room if arrives else make_guest)(tmp_path / "guest", {"disk0": MIB})
    image = str(tmp_path / "guest" / "disks" / "disk0")
    command = [sys.executable, "-c", LOCKS, image]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(GuestError, match=r"disk0: another process uses this image"):
            (take_disk if arrives else open_folder)(tmp_path / "guest")
        other.communicate()
    assert Path(image).exists()


@pytest.mark.parametrize("name", ["", "a" * 250])
def test_a_disk_without_a_place_is_refused(coming: Guest, name: str) -> None:
    """Broken: a disk would be kept under a name that nobody gave it, or end in a traceback."""
    with pytest.raises(GuestError, match=r"without a name|File name too long"):
        coming.prepare_disk(name)


def test_a_disk_without_a_name_takes_the_only_image(tmp_path: Path) -> None:
    """Broken: a disk that QEMU knows by its node alone could not be received."""
    make_room(tmp_path / "guest", {"root": MIB})
    with closing(arrived(tmp_path / "guest")) as guest:
        assert guest.prepare_disk("").name == "root"


def test_two_disks_are_not_one(coming: Guest) -> None:
    """Broken: two disks would be written into one image."""
    coming.prepare_disk("disk0")
    with pytest.raises(GuestError, match="two disks"):
        coming.prepare_disk("disk0")


def test_an_image_that_another_one_changed_is_refused(tmp_path: Path, coming: Guest) -> None:
    """Broken: a guest would run from an image that is not the one that was received."""
    os.ftruncate(coming.prepare_disk("disk0").fd, MIB)
    folder = tmp_path / "guest" / "disks"
    (folder / "disk0.incomplete").rename(folder / "away")
    write_image(folder / "disk0.incomplete", MIB)
    with pytest.raises(GuestError, match="another file has taken its place"):
        coming.invalidate_caches()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("name", ""),
        ("name", 3),
        ("size", 0),
        ("size", MIB + 1),
        ("size", 1 << 60),
        ("size", 2 * MIB),
        ("file", "../disk0"),
        ("file", "disk0.incomplete"),
        ("file", "none"),
        ("read_only", 1),
    ],
)
def test_a_wrong_disk_is_named(tmp_path: Path, member: str, value: Any) -> None:
    """Broken: a damaged guest.json would be a traceback, or another file be taken for a disk."""
    make_guest(tmp_path / "guest", {"disk0": MIB})
    described = tmp_path / "guest" / "guest.json"
    document = json.loads(described.read_text())
    document["disks"][0][member] = value
    described.write_text(json.dumps(document))
    with pytest.raises(GuestError, match=r"disks\[0\]") as error:
        DirectoryGuest(str(tmp_path / "guest"))
    assert "\n" not in str(error.value)


def test_a_link_is_no_image(tmp_path: Path) -> None:
    """Broken: whoever can write to the folder could have any file sent."""
    make_guest(tmp_path / "guest", {"disk0": MIB})
    image = tmp_path / "guest" / "disks" / "disk0"
    image.rename(tmp_path / "elsewhere")
    image.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GuestError, match="a symbolic link"):
        DirectoryGuest(str(tmp_path / "guest"))
