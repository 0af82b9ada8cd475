"""Test when the receiver may start the guest: laws 4 and 5, with sources that end in every way."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from vmferry.guest.errors import MigrationError
from vmferry.guest.line import LINGER
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol import events
from vmferry.protocol.formats.stored_frames import stored_size
from vmferry.protocol.formats.zstd import MAX_BLOCK
from vmferry.protocol.handover import Word
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.return_path import Pong, ReturnPathReader, Shut
from vmferry.protocol.states import MigrationStatus
from vmferry.protocol.words import ping, word_on_wire
from vmferry.receiver.coordinator import ReceiveParameters, Receiver
from vmferry.receiver.errors import KeptError
from vmferry.transport.sockets import reset_on_close

from tests.patience import PATIENCE, wait_until_read
from tests.streams import before_ram, of_synthetic


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the stream of a synthetic guest whose source wants an answer."""
    return of_synthetic("1M", tmp_path_factory.mktemp("stream"))


def receive(
    source: Callable[[socket.socket], None], workers: int = 0, options: str = ""
) -> SyntheticGuest:
    """Receive a guest, which the caller closes, after `source` has sent what it likes."""
    guest = SyntheticGuest.parse(options)
    threads: list[threading.Thread] = []

    def listening(uri: str) -> None:
        _, host, port = uri.split(":")
        threads.append(threading.Thread(target=send, args=((host, int(port)),), daemon=True))
        threads[0].start()

    def send(address: tuple[str, int]) -> None:
        with socket.create_connection(address) as connection:
            source(connection)

    try:
        receiver = Receiver(guest, "tcp:127.0.0.1:0", ReceiveParameters(workers=workers))
        receiver.run(on_listening=listening)
        assert receiver.states.state is MigrationStatus.COMPLETED
    except MigrationError:
        assert not guest.running
        assert receiver.states.state is MigrationStatus.FAILED
        raise
    finally:
        threads[0].join(20)
        if not guest.running:
            guest.close()
    return guest


def wait_for_answer(connection: socket.socket) -> None:
    reader = ReturnPathReader()
    assert reader.feed(connection.recv(100)) == [Shut(0)]


def test_starts_when_the_source_closes(stream: bytes) -> None:
    """Broken: a guest that its source gave up would not start."""

    def source(connection: socket.socket) -> None:
        connection.sendall(stream)
        wait_for_answer(connection)

    guest = receive(source)
    assert guest.running
    assert guest.verify() == []
    guest.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_last_frame_that_only_begins_like_a_stored_one(stream: bytes, workers: int) -> None:
    """Broken: both ends would wait for each other, and the guest would stay where it was.

    The frame begins with raw blocks, as a stored one does; its last block is compressed.
    """
    # The last block holds the description, and little else.
    size = 3 * MAX_BLOCK + 300
    first, last = zstandard.compress(stream[:-size]), zstandard.compress(stream[-size:])
    assert stored_size(memoryview(last)) == size > len(last)

    def source(connection: socket.socket) -> None:
        connection.sendall(first + last[:500])
        # Its head alone is seen first.
        wait_until_read(connection)
        connection.sendall(last[500:])
        wait_for_answer(connection)

    guest = receive(source, workers)
    assert guest.verify() == []
    guest.close()


def test_source_that_left_before_the_answer(stream: bytes) -> None:
    """Broken: both ends would run, as a source that got no answer runs on; or none, as it died."""
    with pytest.raises(KeptError, match=r"left before the answer; the guest is kept"):
        receive(lambda connection: connection.sendall(stream))


def test_source_that_breaks_the_connection(stream: bytes) -> None:
    """Broken: both ends would run, as a source that breaks off has not heard the answer."""

    def source(connection: socket.socket) -> None:
        connection.sendall(stream)
        wait_for_answer(connection)
        reset_on_close(connection)

    with pytest.raises(KeptError, match="reset"):
        receive(source)


def test_confirming_source(stream: bytes) -> None:
    """Broken: a guest would start before its source has given it up, or never."""
    confirming = before_ram(stream, ping(Word.HELLO))

    def source(connection: socket.socket) -> None:
        connection.sendall(confirming)
        reader = ReturnPathReader()
        answers: list[object] = []
        while Shut(0) not in answers:
            answers += reader.feed(connection.recv(100))
        assert answers == [Pong(Word.CONFIRMS), Pong(Word.HELLO), Shut(0)]
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        connection.settimeout(PATIENCE)
        connection.sendall(ping(Word.CONFIRM))
        assert reader.feed(connection.recv(100)) == [Pong(Word.CONFIRM)]

    guest = receive(source)
    assert guest.running
    guest.close()


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        (ping(Word.ABORT), MigrationError, "took the guest back"),
        (b"", KeptError, "without a word"),
        (ping(Word.CONFIRM)[:5], KeptError, "without a word"),
        (b"garbage", KeptError, "behind the end"),
    ],
)
def test_confirming_source_that_does_not_confirm(
    stream: bytes, word: bytes, error: type[MigrationError], message: str
) -> None:
    """Broken: the guest would run at both ends; or the only copy would be thrown away."""
    confirming = before_ram(stream, ping(Word.HELLO))

    def source(connection: socket.socket) -> None:
        connection.sendall(confirming)
        reader = ReturnPathReader()
        while Shut(0) not in reader.feed(connection.recv(100)):
            continue
        connection.sendall(word)

    with pytest.raises(error, match=message) as raised:
        receive(source)
    assert raised.type is error


@pytest.mark.parametrize("framed", [False, True], ids=["plain", "compressed"])
def test_source_that_takes_back_at_once(stream: bytes, framed: bool) -> None:
    """Broken: a word that arrives together with the end of the stream would be lost."""
    whole = before_ram(stream, ping(Word.HELLO))
    if framed:
        whole = zstandard.compress(whole[:-1000]) + zstandard.compress(whole[-1000:])

    def source(connection: socket.socket) -> None:
        connection.sendall(whole + word_on_wire(Word.ABORT, framed=framed))
        connection.settimeout(PATIENCE)
        with suppress(TimeoutError, ConnectionResetError):
            while connection.recv(100):
                continue

    with pytest.raises(MigrationError, match="took the guest back") as raised:
        receive(source)
    assert raised.type is MigrationError


def test_guest_that_dies_behind_the_promise(stream: bytes, tmp_path: Path) -> None:
    """Broken: a source that confirms late would be reset before it hears that it has the guest."""
    confirming = before_ram(stream, ping(Word.HELLO))
    heart, heard = tmp_path / "heart", []

    def source(connection: socket.socket) -> None:
        connection.sendall(confirming)
        reader = ReturnPathReader()
        while Shut(0) not in reader.feed(connection.recv(100)):
            continue
        os.kill(int(heart.read_text().split()[0]), signal.SIGKILL)
        # The connection is there, and takes the word, for as long as the source is slow.
        time.sleep(LINGER + 0.5)
        connection.sendall(ping(Word.CONFIRM))
        time.sleep(0.2)
        connection.sendall(ping(Word.ABORT))
        heard.extend(reader.feed(connection.recv(100)))

    with pytest.raises(MigrationError, match="process died") as raised:
        receive(source, options=f"heartbeat={heart}")
    assert raised.type is MigrationError
    assert heard == [Shut(1)]


@pytest.mark.parametrize("part", [0.001, 0.3, 0.9, 0.99999])
def test_stream_that_ends_early(stream: bytes, part: float) -> None:
    """Broken: half a guest would start (law 4)."""
    with pytest.raises(MigrationError):
        receive(lambda connection: connection.sendall(stream[: int(len(stream) * part)]))


def test_device_section_that_cannot_be_loaded(stream: bytes) -> None:
    """Broken: a guest without its devices would start, and the source would give it up."""
    reader = StreamReader()
    reader.feed(stream)
    (device,) = (e for e in reader.close() if isinstance(e, events.DeviceSection))
    at = device.payload_offset
    lame = stream[:at] + struct.pack("<Q", 7) + stream[at + 8 :]
    answers: list[bytes] = []

    def source(connection: socket.socket) -> None:
        connection.sendall(lame)
        with suppress(ConnectionResetError):
            answers.append(connection.recv(100))

    with pytest.raises(MigrationError, match="version"):
        receive(source)
    assert answers in ([], [b""])
