"""Who has the guest when things break between the end of the stream and the answer (law 5)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.return_path import shut
from vmferry.protocol.states import MigrationStatus
from vmferry.sender.coordinator import MigrationError, Sender
from vmferry.transport.process import Child

Last = Callable[[socket.socket], None]


class Destination:
    """Reads the stream to its end, then does as it was told with the connection."""

    def __init__(self, last: Last) -> None:
        self._last = last
        self._server = socket.create_server(("127.0.0.1", 0))
        self.uri = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            reader = StreamReader()
            while not reader.finished:
                reader.feed(connection.recv(1 << 16))
            self._last(connection)
            with suppress(ConnectionResetError):
                connection.recv(1)

    def close(self) -> None:
        self._thread.join(20)
        self._server.close()


@pytest.fixture
def source() -> Iterator[SyntheticGuest]:
    guest = SyntheticGuest.parse("2M,dirty-rate=1M")
    yield guest
    guest.close()


def hand_over(source: SyntheticGuest, last: Callable[[Sender, socket.socket], None]) -> Sender:
    destination = Destination(lambda connection: last(sender, connection))
    sender = Sender(source, destination.uri)
    try:
        sender.run()
    finally:
        destination.close()
    return sender


def transport(sender: Sender) -> psutil.Process:
    children: list[Child] = sender._crew._children
    return psutil.Process(children[0].pid)


def test_answer_ends_it(source: SyntheticGuest) -> None:
    """Broken: a source whose destination runs the guest would run it, too."""
    sender = hand_over(source, lambda _, connection: connection.sendall(shut(0)))
    assert sender.states.state is MigrationStatus.COMPLETED
    assert not source.running


def test_refusal(source: SyntheticGuest) -> None:
    """Broken: a destination that could not load the guest would cost it."""
    with pytest.raises(MigrationError, match="could not load"):
        hand_over(source, lambda _, connection: connection.sendall(shut(1)))
    assert source.running


def test_no_answer(source: SyntheticGuest) -> None:
    """Broken: a destination that dies before its answer would cost the guest."""
    with pytest.raises(MigrationError):
        hand_over(source, lambda _, connection: connection.shutdown(socket.SHUT_RDWR))
    assert source.running


def test_answer_counts_without_the_transport_process(source: SyntheticGuest) -> None:
    """Broken: the guest would run on both sides when the transport process dies too late."""

    def last(sender: Sender, connection: socket.socket) -> None:
        transport(sender).suspend()
        connection.sendall(shut(0))
        transport(sender).kill()

    assert hand_over(source, last).states.state is MigrationStatus.COMPLETED
    assert not source.running


def test_no_answer_and_no_transport_process(source: SyntheticGuest) -> None:
    """Broken: the guest would run nowhere when the transport process dies too early, or on both
    sides because the destination took the end of the connection for a hand-over.
    """
    reset = []

    def last(sender: Sender, connection: socket.socket) -> None:
        transport(sender).kill()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        reset.append(True)

    with pytest.raises(MigrationError, match="died"):
        hand_over(source, last)
    assert source.running
    assert reset
