"""The steps of an incoming guest at rest: what exists after each, and who may take the next."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from vmferry.guest import directory, directory_files
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import GuestError

from tests.guest.at_rest import (
    LAYOUT,
    MACHINE,
    arrived,
    assert_whole,
    everything,
    kept,
    receive,
    rewrite,
    sealed,
)

HOLD = """
import sys
from vmferry.guest.directory import DirectoryGuest
guest = DirectoryGuest(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def mask() -> Iterator[None]:
    """Set a umask that would let others read everything."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_seal_leaves_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a step that can fail would come after the source gave its guest up."""
    guest = sealed(tmp_path, running=False)
    before = everything(tmp_path)
    assert json.loads((tmp_path / "guest.json.new").read_text())["running"] is False
    assert not (tmp_path / "guest.json").exists()
    for name in ("make_file", "make_folder", "write"):
        monkeypatch.delattr(directory_files, name)
    guest.complete(running=False)
    guest.close()
    before["guest.json"] = before.pop("guest.json.new")
    assert everything(tmp_path) == before
    assert_whole(tmp_path)


def no_space(*_: Any, **__: Any) -> NoReturn:
    """Fail as a disk does that is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "ftruncate", "mkdir"])
def test_full_disk_is_seen_before_the_end(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a disk that is full would be seen when the source has given its guest up."""
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(GuestError, match=f"{tmp_path}/a/g: No space left on device"):
        sealed(tmp_path / "a" / "g")


def test_errors_of_writing_back_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: devices that never reached the disk would count as received."""

    class Broken:
        """A C library whose `syncfs` reports a disk that failed."""

        def syncfs(self, _: int) -> int:
            """Fail, as a broken disk does."""
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(directory, "MANY_FILES", 0)
    monkeypatch.setattr(directory_files, "_libc", Broken())
    monkeypatch.setattr(os, "major", lambda _: 8)
    guest = arrived(tmp_path)
    with pytest.raises(GuestError, match="Input/output error"):
        guest.seal(running=True)
    guest.abort_incoming()
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("release", ["5.7.19-generic", "6.1"])
def test_kernels_that_hide_errors(
    tmp_path: Path, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: an old kernel, or a server's disk, would be trusted to tell of errors."""
    monkeypatch.setattr(directory_files, "_libc", None)
    monkeypatch.setattr(os, "major", lambda _: 0 if release == "6.1" else 8)
    names = os.uname()
    changed = type(names)((names.sysname, names.nodename, release, names.version, names.machine))
    monkeypatch.setattr(os, "uname", lambda: changed)
    folder = directory_files.open_path(str(tmp_path))
    assert not directory_files.sync_at_once(folder)
    os.close(folder)


def test_another_process_finishes(tmp_path: Path) -> None:
    """Broken: a guest would be lost with the process that received it."""
    guest = sealed(tmp_path / "guest")
    finisher = pickle.dumps(guest.finisher())
    program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())()"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], input=finisher, cwd="/", check=True)
        assert (tmp_path / "guest" / "guest.json").exists()
    guest.complete(running=True)
    guest.close()
    assert_whole(tmp_path / "guest")


def test_only_the_sealed_guest_is_finished(tmp_path: Path) -> None:
    """Broken: another guest, that came to the same place later, would be started."""
    guest = sealed(tmp_path)
    finisher = guest.finisher()
    assert finisher is not None
    guest.abort_incoming()
    other = sealed(tmp_path)
    with pytest.raises(GuestError, match="not there any more"):
        finisher()
    assert not (tmp_path / "guest.json").exists()
    other.abort_incoming()


def test_nothing_to_finish_before_the_seal(tmp_path: Path) -> None:
    """Broken: a guest that is not whole could be finished, or kept as if it were."""
    guest = arrived(tmp_path)
    assert guest.finisher() is None
    with pytest.raises(GuestError, match="not complete"):
        guest.keep()
    with pytest.raises(GuestError, match="not sealed"):
        guest.complete(running=True)
    guest.abort_incoming()


def test_completed_elsewhere_is_not_removed(tmp_path: Path) -> None:
    """Broken: what a surviving process has completed would be removed by one that gives up."""
    guest = sealed(tmp_path)
    finisher = guest.finisher()
    assert finisher is not None
    finisher()
    guest.abort_incoming()
    assert_whole(tmp_path)


def test_kept_and_taken_up(tmp_path: Path) -> None:
    """Broken: a guest that nobody started would be lost, or nobody would know how to get at it."""
    path = tmp_path / "my guest"
    command = f"vmferry receive --resume --guest 'dir:{path}'"
    line = kept(path)
    assert str(path) in line
    assert line.endswith(command)
    guest = DirectoryGuest(str(path))
    with pytest.raises(GuestError) as caught:
        _ = guest.machine
    assert str(caught.value).endswith(command)
    with pytest.raises(GuestError, match="kept, not started"):
        guest.check_incoming()
    guest.take_up()
    assert guest.machine == MACHINE
    with pytest.raises(GuestError, match="holds a guest already"):
        guest.take_up()
    guest.close()
    assert_whole(path)


def test_nothing_was_kept(tmp_path: Path) -> None:
    """Broken: any folder would be taken for a guest."""
    for path in (tmp_path, tmp_path / "none"):
        guest = DirectoryGuest(str(path))
        with pytest.raises(GuestError, match="no guest was kept here"):
            guest.take_up()
        guest.close()
    assert everything(tmp_path) == {}


def test_kept_guest_that_is_not_whole(tmp_path: Path) -> None:
    """Broken: a guest that lost some of its state would be started."""

    def cut_ram(path: Path) -> None:
        os.truncate(path / "ram" / "000-pc.ram", 4096)

    def lose_device(path: Path) -> None:
        (path / "devices" / "001-cpu").unlink()

    def cut_device(path: Path) -> None:
        os.truncate(path / "devices" / "001-cpu", 99)

    def cut_description(path: Path) -> None:
        os.truncate(path / "guest.json.new", 500)

    def lose_section(path: Path) -> None:
        rewrite(path, lambda document: document.pop("sections"), "guest.json.new")

    for damage in (cut_ram, lose_device, cut_device, cut_description, lose_section):
        path = tmp_path / damage.__name__
        kept(path)
        damage(path)
        guest = DirectoryGuest(str(path))
        with pytest.raises(GuestError, match=r"guest\.json\.new: incomplete: "):
            guest.take_up()
        guest.close()
        assert not (path / "guest.json").exists()


@pytest.mark.parametrize("umask", [0, 0o022, 0o277])
def test_only_the_owner_can_read(tmp_path: Path, umask: int) -> None:
    """Broken: others could read a guest's memory, or the owner could not."""
    mine = tmp_path / "mine"
    mine.mkdir(0o755)
    os.umask(umask)
    receive(mine)
    receive(tmp_path / "new" / "guest")
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert modes.pop("mine") == 0o755
    for name, mode in modes.items():
        assert mode == (0o700 if (tmp_path / name).is_dir() else 0o600), name


@pytest.mark.parametrize("name", ["guest.json.new", "guest.json", "ram", "devices"])
@pytest.mark.parametrize("link", [False, True])
def test_what_stands_in_the_way(tmp_path: Path, name: str, link: bool) -> None:
    """Broken: what a link points to would be overwritten, or a file of the user's."""
    victim, path = tmp_path / "victim", tmp_path / "guest"
    victim.write_text("precious")
    guest = DirectoryGuest(str(path))
    path.mkdir()
    if link:
        (path / name).symlink_to(victim)
    else:
        (path / name).write_text("precious")
    before = everything(tmp_path)
    with pytest.raises(GuestError, match=f"holds '{name}' of something else"):
        guest.prepare(MACHINE, LAYOUT)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["guest.json.new", "guest.json"])
def test_what_gets_in_the_way_meanwhile(tmp_path: Path, name: str) -> None:
    """Broken: what was planted while RAM came would be followed, overwritten or replaced."""
    victim, path = tmp_path / "victim", tmp_path / "guest"
    victim.write_text("precious")
    guest = arrived(path)
    (path / name).symlink_to(victim)
    with pytest.raises(GuestError, match=rf"{path}: .*(holds 'guest.json'|File exists)"):
        guest.seal(running=True)
    guest.abort_incoming()
    assert victim.read_text() == "precious"
    assert [found.name for found in path.iterdir()] == [name]


def test_failed_receive_removes_its_own_only(tmp_path: Path) -> None:
    """Broken: folders that a failed receive made would stay, or others' files would go."""
    for seal in (False, True):
        guest = (sealed if seal else arrived)(tmp_path / "a" / "b" / "c")
        guest.abort_incoming()
        assert everything(tmp_path) == {}
    (tmp_path / "a").mkdir()
    guest = sealed(tmp_path / "a" / "b" / "c")
    (tmp_path / "a" / "b" / "c" / "ram" / "notes").write_text("mine")
    guest.abort_incoming()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
        tmp_path / "a" / "b" / "c" / "ram" / "notes"
    ]
    assert not (tmp_path / "a" / "b" / "c" / "devices").exists()


def test_completed_guest_is_never_removed(tmp_path: Path) -> None:
    """Broken: a failure after the last step would remove the guest."""
    guest = sealed(tmp_path)
    guest.complete(running=True)
    guest.abort_incoming()
    assert_whole(tmp_path)


def test_one_process_uses_a_folder(tmp_path: Path) -> None:
    """Broken: a guest could be sent while it is received or taken up, or received twice."""
    receive(tmp_path / "guest")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "guest", tmp_path / "empty"):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(GuestError, match=f"{path}: another process uses"):
            DirectoryGuest(str(path))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
        holder.stdin.close()
        DirectoryGuest(str(path)).close()


def test_two_receives_race(tmp_path: Path) -> None:
    """Broken: two guests would be written into each other."""
    one, other = DirectoryGuest(str(tmp_path / "g")), DirectoryGuest(str(tmp_path / "g"))
    one.prepare(MACHINE, LAYOUT)
    with pytest.raises(GuestError, match="another process uses"):
        other.prepare(MACHINE, LAYOUT)
    assert len(list((tmp_path / "g" / "ram").iterdir())) == len(LAYOUT)
    one.abort_incoming()
    assert everything(tmp_path) == {}


def test_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a source would connect, and send, before it turned out that nothing can be kept."""
    # Root may write everywhere, so the answer of the system is given here.
    asked: list[str] = []

    def access(path: str, *_: Any, **__: Any) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr(os, "access", access)
    guest = DirectoryGuest(str(tmp_path / "a" / "b"))
    with pytest.raises(GuestError, match=f"{tmp_path}: no permission"):
        guest.check_incoming()
    assert asked == [str(tmp_path)]
    (tmp_path / "file").touch()
    with pytest.raises(GuestError, match="Not a directory"):
        DirectoryGuest(str(tmp_path / "file" / "g"))
