"""Listening Unix sockets: what a dead process left is replaced, and nothing else is touched."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from vmferry.transport.channel import ChannelError, listen
from vmferry.transport.unix_socket import UnixListener
from vmferry.transport.uri import Unix


def left_behind(path: Path) -> None:
    """Leave what a killed process leaves."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def answers(path: Path) -> bool:
    """Return whether somebody can connect."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        return client.connect_ex(str(path)) == 0


def test_dead_socket_is_replaced(tmp_path: Path) -> None:
    """Broken: after a crash the same command is refused until somebody removes a file."""
    left_behind(tmp_path / "x")
    listener = UnixListener(str(tmp_path / "x"), 1)
    assert answers(tmp_path / "x")
    listener.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("listening", [True, False])
def test_socket_in_use_is_left_alone(kind: int, listening: bool, tmp_path: Path) -> None:
    """Broken: a second receiver takes the place of one that waits, or ends it by asking."""
    with socket.socket(socket.AF_UNIX, kind) as used:
        used.bind(str(tmp_path / "x"))
        if listening and kind != socket.SOCK_DGRAM:
            used.listen(1)
            used.setblocking(False)
        with pytest.raises(ChannelError, match="x: somebody listens there already"):
            listen(Unix(str(tmp_path / "x")))
        assert (tmp_path / "x").exists()
        if listening and kind != socket.SOCK_DGRAM:
            with pytest.raises(BlockingIOError):
                used.accept()


def make_link(path: Path) -> None:
    """Make a link to a dead socket: whoever made it did so for a reason."""
    left_behind(path.with_name("y"))
    path.symlink_to("y")


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo, make_link])
def test_what_is_no_socket_stays(make: Callable[[Path], None], tmp_path: Path) -> None:
    """Broken: a mistyped URI removes a file."""
    make(tmp_path / "x")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ChannelError, match="x: there is something that is not a socket"):
        listen(Unix(str(tmp_path / "x")))
    assert sorted(os.listdir(tmp_path)) == before


def test_socket_of_another_stays(tmp_path: Path) -> None:
    """Broken: a receiver that ends takes away the place at which the next one waits."""
    first = UnixListener(str(tmp_path / "x"), 1)
    os.unlink(tmp_path / "x")
    second = UnixListener(str(tmp_path / "x"), 1)
    first.close()
    assert answers(tmp_path / "x")
    second.close()


def test_mode_may_be_changed(tmp_path: Path) -> None:
    """Broken: a socket that a group was let in to would stay behind."""
    listener = UnixListener(str(tmp_path / "x"), 1)
    os.chmod(tmp_path / "x", 0o660)
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_locked_folder(tmp_path: Path) -> None:
    """Broken: whoever locks a folder of all keeps every receiver from starting."""
    left_behind(tmp_path / "x")
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    UnixListener(str(tmp_path / "x"), 1).close()
    os.close(folder)


def test_many_at_once(tmp_path: Path) -> None:
    """Broken: two receivers both believe that they have the place, and one waits for ever."""
    path = tmp_path / "x"
    for _ in range(20):
        left_behind(path)
        won: list[UnixListener] = []
        start = threading.Barrier(4)

        def run(won: list[UnixListener] = won, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                won.append(UnixListener(str(path), 1))
            except OSError:
                # Another one has it.
                return

        threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        count, found = len(won), answers(path)
        for listener in won:
            listener.close()
        assert (count, found) == (1, True)
        assert list(tmp_path.iterdir()) == []
