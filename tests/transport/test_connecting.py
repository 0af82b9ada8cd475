"""Channels that are opened beside other things, and given up meanwhile."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from vmferry.transport.channel import ChannelError
from vmferry.transport.connecting import Connecting
from vmferry.transport.shared import wait_readable
from vmferry.transport.uri import Exec, File, Tcp, Unix, Uri

from tests.patience import PATIENCE


def test_result(tmp_path: Path) -> None:
    """Broken: nothing could be sent, or a refusal would be waited for for ever."""
    for uri in (File(str(tmp_path / "stream")), Exec("cat > /dev/null")):
        connecting = Connecting(uri)
        assert wait_readable([connecting.fileno()], 10)
        connecting.result().close()
    refused = Connecting(Unix(str(tmp_path / "nobody")))
    assert wait_readable([refused.fileno()], 10)
    with pytest.raises(ChannelError, match="No such file"):
        refused.result()


def full_listener(stack: ExitStack, uri: Uri) -> tuple[socket.socket, Uri]:
    """Return a listener whose backlog is full, so that the next connection waits."""
    tcp = isinstance(uri, Tcp)
    listening = stack.enter_context(socket.socket(socket.AF_INET if tcp else socket.AF_UNIX))
    listening.bind(("127.0.0.1", 0) if tcp else "full")
    listening.listen(0)
    first = stack.enter_context(socket.socket(listening.family))
    first.connect(listening.getsockname())
    return listening, Tcp(*listening.getsockname()) if tcp else uri


@pytest.mark.parametrize("uri", [Tcp("", 0), Unix("full")])
def test_peer_that_takes_nobody(uri: Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a cancel would wait for it; or the peer would be left with half a connection."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        listening, uri = full_listener(stack, uri)
        connecting = Connecting(uri)
        assert not wait_readable([connecting.fileno()], 0.2)
        connecting.abandon()
        listening.settimeout(PATIENCE)
        listening.accept()[0].close()
        with listening.accept()[0] as abandoned:
            abandoned.settimeout(PATIENCE)
            with pytest.raises(ConnectionResetError) if isinstance(uri, Tcp) else ExitStack():
                assert abandoned.recv(1) == b""


def test_named_pipe_that_nobody_reads(tmp_path: Path) -> None:
    """Broken: the same with a pipe; a reader that comes too late would wait for a stream."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    connecting = Connecting(File(str(path)))
    assert not wait_readable([connecting.fileno()], 0.2)
    connecting.abandon()
    assert path.read_bytes() == b""
