"""Relays on hosts without descriptors, memory or disk: a clear line, and the source runs on."""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until
from tests.qemu.machine import VMFERRY
from tests.relay.network.relays import RelayProcess
from tests.relay.test_watch import WITH_ANSWERS

MIB = 1 << 20


class Ends:
    """A pair of relays, and the sockets on both sides."""

    def __init__(self, folder: Path) -> None:
        self._open: list[socket.socket] = []
        self._entry, there = f"{folder}/source.sock", f"{folder}/destination.sock"
        self.listener = self._socket()
        self.listener.bind(there)
        self.listener.listen()
        link = f"unix:{folder}/link.sock"
        self.far = RelayProcess([], folder / "far.log", link, f"unix:{there}", "--link", "far")
        near = (f"unix:{self._entry}", link, "--link", "near")
        self.near = RelayProcess([], folder / "near.log", *near)

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        self._open.append(sock)
        return sock

    def connect(self) -> socket.socket:
        """Connect as a source."""
        sock = self._socket()
        sock.connect(self._entry)
        return sock

    def accept(self) -> socket.socket:
        """Return the next connection at the destination."""
        sock = self.listener.accept()[0]
        sock.settimeout(PATIENCE)
        self._open.append(sock)
        return sock

    def close(self) -> None:
        """End everything."""
        for sock in self._open:
            sock.close()
        for relay in (self.near, self.far):
            relay.kill()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    made.close()


def limit_descriptors(relay: RelayProcess, more: int) -> tuple[int, int]:
    """Let a relay open so many more descriptors; return its limits until now."""
    process = psutil.Process(relay.process.pid)
    before: tuple[int, int] = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    limits = process.num_fds() + more, before[1]
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
    return before


def limit_memory(relay: RelayProcess, more: int) -> None:
    """Let a relay have so much more address space, in bytes."""
    process = psutil.Process(relay.process.pid)
    limit = process.memory_info().vms + more
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))


def says(relay: RelayProcess, words: str) -> None:
    """Wait until a relay has said this, in one line and without a traceback."""
    wait_until(lambda: words in relay.said(), relay.said)
    assert "Traceback" not in relay.said()


def passes(ends: Ends) -> None:
    """Check that a migration passes."""
    source = ends.connect()
    destination = ends.accept()
    source.sendall(WITH_ANSWERS)
    got = b""
    while len(got) < len(WITH_ANSWERS):
        got += destination.recv(MIB)
    assert got == WITH_ANSWERS
    destination.close()
    assert source.recv(1) == b""


def test_no_descriptor_for_a_source(ends: Ends) -> None:
    """Broken: a relay would never accept anything again, and say nothing."""
    before = limit_descriptors(ends.near, 0)
    waiting = ends.connect()
    says(ends.near, "no connection can be accepted: Too many open files; it waits")
    resource.prlimit(ends.near.process.pid, resource.RLIMIT_NOFILE, before)
    ends.accept()
    waiting.close()
    passes(ends)


@pytest.mark.parametrize(
    ("side", "more", "words"),
    [
        ("near", 1, "cannot connect to the far relay: Too many open files"),
        ("near", 2, "no process that keeps the source if this one is killed"),
        ("far", 1, "cannot connect to the destination at "),
    ],
)
def test_no_descriptor_for_a_migration(ends: Ends, side: str, more: int, words: str) -> None:
    """Broken: a source would wait for what never comes, and nobody would know why."""
    relay: RelayProcess = getattr(ends, side)
    before = limit_descriptors(relay, more)
    source = ends.connect()
    with suppress(BrokenPipeError):
        source.sendall(WITH_ANSWERS)
    assert is_told(source)
    says(relay, words)
    if side == "near" and more == 2:
        ends.accept()
    resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, before)
    passes(ends)


def is_told(source: socket.socket) -> bool:
    """Wait until the connection of a source is broken."""
    try:
        return source.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("side", ["near", "far"])
def test_no_memory(ends: Ends, side: str) -> None:
    """Broken: a source would wait for a relay that can take nothing, or tracebacks fill its log."""
    relay: RelayProcess = getattr(ends, side)
    source = ends.connect()
    source.sendall(b"not a stream")
    destination = ends.accept()
    assert destination.recv(100) == b"not a stream"
    limit_memory(relay, 8 * MIB)
    # The destination takes nothing, so the relays have to keep it.
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        source.sendall(bytes(256 * MIB))
    says(relay, "this relay cannot go on: there is no memory left")


def test_full_disks(tmp_path: Path) -> None:
    """Broken: a migration would fail as the log of a relay has no room."""
    entry, there = f"{tmp_path}/source.sock", f"{tmp_path}/destination.sock"
    with socket.socket(socket.AF_UNIX) as listener, open("/dev/full", "wb") as full:
        listener.bind(there)
        listener.listen()
        link = f"unix:{tmp_path}/link.sock"
        far = (link, f"unix:{there}", "--link", "far")
        near = (f"unix:{entry}", link, "--link", "near", "--one-way")
        relays = []
        try:
            for command in (far, near):
                words = [*VMFERRY, "relay", *command, "--json"]
                relays.append(subprocess.Popen(words, stdout=full, stderr=full))
                where = Path(command[0].removeprefix("unix:"))
                wait_until(where.exists)
            with socket.socket(socket.AF_UNIX) as source:
                wait_until(lambda: source.connect_ex(entry) == 0)
                destination = listener.accept()[0]
                source.sendall(b"half")
                assert destination.recv(100) == b"half"
                # A few lines of figures are due meanwhile.
                wait_until(lambda: all(_points_to_null(one.pid) for one in relays))
                source.sendall(b"rest")
                assert destination.recv(100) == b"rest"
                destination.close()
            for one in relays:
                one.terminate()
                assert one.wait(PATIENCE) == 128 + signal.SIGTERM
        finally:
            for one in relays:
                one.kill()
                one.wait()


def _points_to_null(pid: int) -> bool:
    """Return whether a process has given up its standard output."""
    return Path(f"/proc/{pid}/fd/1").readlink() == Path("/dev/null")


@pytest.mark.parametrize(
    ("path", "words"),
    [("missing/relay.sock", "No such file or directory"), ("x" * 200, "AF_UNIX path too long")],
)
def test_a_socket_that_cannot_be_made(tmp_path: Path, path: str, words: str) -> None:
    """Broken: a relay that nobody can reach would seem to run, or end with a traceback."""
    command = [*VMFERRY, "relay", f"unix:{tmp_path}/{path}", "tcp:localhost:1", "--link", "near"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ran.returncode == 1
    assert words in ran.stderr
    assert ran.stderr.count("\n") == 1
