"""Test channels of every scheme."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from vmferry.transport.channel import Channel, ChannelError, connect, listen
from vmferry.transport.uri import Exec, Fd, File, Tcp, Unix, Uri, parse_uri

DATA = bytes(range(256)) * 64


def _read_all(channel: Channel) -> bytes:
    data = bytearray()
    piece = memoryview(bytearray(4096))
    while count := channel.recv_into(piece):
        data += piece[:count]
    return bytes(data)


def _send_on(channel: Channel) -> None:
    while True:
        channel.send(memoryview(DATA))


@pytest.mark.parametrize("uri", [Tcp("127.0.0.1", 0), Tcp("::1", 0), Unix("migrate.sock")])
def test_sockets_both_ways(uri: Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: nothing could be migrated over this scheme, or the return path would be mute."""
    monkeypatch.chdir(tmp_path)
    listener = listen(uri)
    source = connect(parse_uri(listener.address))
    destination = listener.accept()
    listener.close()
    assert source.bidirectional
    assert destination.bidirectional
    destination.send(memoryview(b"answer"))
    answer = memoryview(bytearray(6))
    assert source.recv_into(answer) == 6
    source.send(memoryview(DATA[:1000]))
    source.send(memoryview(DATA[1000:]))
    source.close()
    assert _read_all(destination) == DATA
    destination.close()


def test_file_with_offset(tmp_path: Path) -> None:
    """Broken: a stream behind something else would overwrite it, or be read from a wrong place."""
    path = str(tmp_path / "stream")
    Path(path).write_bytes(b"head")
    channel = connect(File(path, 4))
    channel.send(memoryview(DATA))
    channel.close()
    assert Path(path).read_bytes() == b"head" + DATA
    reading = listen(File(path, 4)).accept()
    assert _read_all(reading) == DATA
    reading.close()


def test_exec(tmp_path: Path) -> None:
    """Broken: streams could not be piped through a command."""
    path = tmp_path / "stream"
    channel = connect(Exec(f"cat > {path}"))
    channel.send(memoryview(DATA))
    channel.close()
    assert path.read_bytes() == DATA
    reading = listen(Exec(f"cat {path}")).accept()
    assert _read_all(reading) == DATA
    reading.close()


def test_failed_command_is_an_error() -> None:
    """Broken: a stream that a command lost would count as delivered."""
    channel = connect(Exec("cat > /dev/null; exit 3"))
    with pytest.raises(ChannelError, match="status 3"):
        channel.close()


def test_fd() -> None:
    """Broken: an inherited pipe could not be used."""
    reading, writing = os.pipe()
    channel = connect(Fd(writing))
    os.close(writing)
    channel.send(memoryview(b"abc"))
    channel.close()
    other = listen(Fd(reading)).accept()
    os.close(reading)
    assert _read_all(other) == b"abc"
    other.close()


def test_refused_connection_names_the_uri() -> None:
    """Broken: the user could not tell what failed."""
    with pytest.raises(ChannelError, match=r"tcp:127\.0\.0\.1:1: Connection refused"):
        connect(Tcp("127.0.0.1", 1))


def test_end_of_answers_ends_a_wait_to_send() -> None:
    """Broken: a destination that hung up and reads no more would hold the source for ever."""
    near, far = socket.socketpair()
    channel = Channel(near.detach(), "here")
    channel.answered = True
    far.shutdown(socket.SHUT_WR)
    # There is room: what it does not want to hear, it may still take.
    channel.send(memoryview(b"x"))
    with pytest.raises(ChannelError, match="closed the connection"):
        channel.send(memoryview(bytes(8 << 20)))
    channel.abort()
    far.close()


@pytest.mark.parametrize("uri", [Tcp("127.0.0.1", 0), Unix("migrate.sock")])
def test_other_end_that_is_gone(uri: Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: "Broken pipe", where a QEMU refused the guest, would not say where to look."""
    monkeypatch.chdir(tmp_path)
    listener = listen(uri)
    source = connect(parse_uri(listener.address))
    destination = listener.accept()
    listener.close()
    destination.abort()
    with pytest.raises(ChannelError, match="the other end closed the connection; its log"):
        _send_on(source)
    source.abort()


def test_command_that_is_gone() -> None:
    """Broken: "Broken pipe" would not say that the command did not read all of the stream."""
    channel = connect(Exec("exit 0"))
    with pytest.raises(ChannelError, match="exec:exit 0: what reads it ended before it took all"):
        _send_on(channel)
    channel.abort()


def test_both_ends_ask_whether_the_other_host_is_there() -> None:
    """Broken: a destination waits for ever for a source whose host lost its power."""
    listener = listen(Tcp("127.0.0.1", 0))
    near = connect(parse_uri(listener.address))
    far = listener.accept()
    listener.close()
    for channel in (near, far):
        with socket.socket(fileno=os.dup(channel.fileno())) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, probes = (
                sock.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * probes <= 60
            assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        channel.close()
