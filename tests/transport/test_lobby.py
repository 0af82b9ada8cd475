"""Test who is let in: the one who begins as expected, whoever else connects before or beside."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmferry.transport.channel import Channel, Listener, listen
from vmferry.transport.lobby import MAX_WAITING, Lobby
from vmferry.transport.uri import Fd, Tcp, Unix, parse_uri

from tests.patience import PATIENCE, wait_until


def begins(head: bytes) -> bool | None:
    """Return whether the head is GOOD."""
    if head.startswith(b"GOOD"):
        return True
    return None if b"GOOD".startswith(head) else False


class Waiting:
    """A lobby that waits in a thread, and what it says."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.said: list[str] = []
        self.channel: Channel | None = None
        self._lobby = Lobby(listener, begins, self.said.append)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.channel = self._lobby.wait(self._wait_fd)

    def _wait_fd(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            raise TimeoutError

    def connect(self, data: bytes = b"") -> socket.socket:
        """Connect, and send these bytes."""
        uri = parse_uri(self.listener.address)
        if isinstance(uri, Unix):
            client = socket.socket(socket.AF_UNIX)
            client.connect(uri.path)
        else:
            assert isinstance(uri, Tcp)
            client = socket.create_connection((uri.host, uri.port))
        client.sendall(data)
        return client

    def until_refused(self, count: int) -> None:
        """Wait until so many have been."""
        wait_until(lambda: len(self.said) >= count)

    def read(self, count: int) -> bytes:
        """Return the first bytes of the channel that was let in."""
        self._thread.join(PATIENCE)
        assert self.channel is not None
        data = bytearray(count)
        self.channel.recv_into(memoryview(data))
        return bytes(data)

    def close(self) -> None:
        """End it, by a good one if need be."""
        if self._thread.is_alive():
            self.connect(b"GOOD").close()
            self._thread.join(PATIENCE)
        if self.channel is not None:
            self.channel.close()
        self.listener.close()


@pytest.fixture(params=["tcp", "unix"])
def waiting(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Waiting]:
    uri = Tcp("127.0.0.1", 0) if request.param == "tcp" else Unix(str(tmp_path / "x"))
    waiting = Waiting(listen(uri))
    yield waiting
    waiting.close()


def test_silent_one_does_not_keep_out_the_source(waiting: Waiting) -> None:
    """Broken: whoever connects first and says nothing holds the one place."""
    silent = waiting.connect()
    with waiting.connect(b"GOOD stream"):
        assert waiting.read(11) == b"GOOD stream"
    # It learns that nobody waits for it.
    silent.settimeout(PATIENCE)
    assert silent.recv(1) == b""
    silent.close()
    assert waiting.said == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"GET / HTTP/1.1\r\n", "it does not begin as it should"), (b"", "it ended before")],
)
def test_others_are_refused(data: bytes, reason: str, waiting: Waiting) -> None:
    """Broken: a port scan, or a browser, ends the receiver that waits for a guest."""
    waiting.connect(data).close()
    waiting.until_refused(1)
    assert reason in waiting.said[0]
    assert waiting.said[0].startswith("a connection from ")
    with waiting.connect(b"GOOD"):
        assert waiting.read(4) == b"GOOD"


def test_half_a_beginning(waiting: Waiting) -> None:
    """Broken: a source whose first bytes arrive one by one is refused."""
    with waiting.connect(b"GO") as slow:
        with waiting.connect(b"GO") as left:
            left.shutdown(socket.SHUT_WR)
            waiting.until_refused(1)
        slow.sendall(b"O")
        slow.sendall(b"D!")
        assert waiting.read(5) == b"GOOD!"


def test_many_silent_ones(waiting: Waiting) -> None:
    """Broken: connections that say nothing use up the descriptors of the receiver."""
    silent = []
    for number in range(MAX_WAITING + 3):
        silent.append(waiting.connect())
        # The oldest go first; each is let in before the next one comes.
        if number >= MAX_WAITING:
            waiting.until_refused(number - MAX_WAITING + 1)
    for client in silent[:3]:
        client.settimeout(PATIENCE)
        assert client.recv(1) == b""
    with waiting.connect(b"GOOD"):
        assert waiting.read(4) == b"GOOD"
    assert len(waiting.said) >= 3
    for client in silent:
        client.close()


def test_wait_can_be_left(tmp_path: Path) -> None:
    """Broken: Ctrl-C waits for a source."""
    listener = listen(Unix(str(tmp_path / "x")))

    class CancelledError(Exception):
        """Exception that a crew raises to leave a wait."""

    def cancelled(_: int) -> None:
        raise CancelledError

    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / "x"))
        with pytest.raises(CancelledError):
            Lobby(listener, begins, print).wait(cancelled)
    listener.close()


def test_what_is_one_channel_is_taken() -> None:
    """Broken: an inherited descriptor would wait for a connection."""
    reading, writing = os.pipe()
    listener = listen(Fd(reading))
    os.write(writing, b"BAD, but whose else should it be")
    channel = Lobby(listener, begins, print).wait(lambda _: None)
    assert channel.fileno() not in (reading, writing)
    channel.close()
    listener.close()
    os.close(reading)
    os.close(writing)
