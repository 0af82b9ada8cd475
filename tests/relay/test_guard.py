"""A near relay that is killed: the process beside it keeps the source as long as there is doubt."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from vmferry.protocol.return_path import pong, shut

from tests.patience import PATIENCE, wait_until
from tests.relay.network.relays import RelayProcess
from tests.relay.test_watch import DESCRIPTION, WITH_ANSWERS


class Migration:
    """A source and a destination, both sockets of this process, and the relays between them."""

    def __init__(self, folder: Path, *near_options: str, secret: tuple[str, ...] = ()) -> None:
        self._open: list[socket.socket] = []
        self._listener = self._made(socket.socket(socket.AF_UNIX))
        self._listener.bind(f"{folder}/destination.sock")
        self._listener.listen()
        self._listener.settimeout(PATIENCE)
        link, self._entry = f"unix:{folder}/link.sock", f"{folder}/source.sock"
        destination = f"unix:{folder}/destination.sock"
        self.far = RelayProcess([], folder / "far.log", link, destination, "--link", "far", *secret)
        near = ("--link", "near", *near_options, *secret)
        self.near = RelayProcess([], folder / "near.log", f"unix:{self._entry}", link, *near)
        self.connect()

    def connect(self) -> None:
        """Begin a migration."""
        self.source = self._made(socket.socket(socket.AF_UNIX))
        self.source.settimeout(PATIENCE)
        self.source.connect(self._entry)
        self.destination = self._made(self._listener.accept()[0])
        self.destination.settimeout(PATIENCE)

    def _made(self, sock: socket.socket) -> socket.socket:
        self._open.append(sock)
        return sock

    def pass_on(self, size: int) -> psutil.Process:
        """Pass the first bytes of a stream, and the first answer; return the guardian process."""
        self.source.sendall(WITH_ANSWERS[:size])
        got = 0
        while got < size:
            got += len(self.destination.recv(1 << 20))
        self.destination.sendall(pong(1))
        assert self.source.recv(100) == pong(1)
        (guardian,) = psutil.Process(self.near.process.pid).children()
        return guardian

    def destination_ends(self, answer: bytes) -> None:
        """Have the destination answer once its input has ended, and close its connection."""
        assert self.destination.recv(1) == b""
        if answer:
            self.destination.sendall(answer)
        self.destination.close()

    def source_is_told(self) -> bool:
        """Wait until the source's connection is closed; an answer must not come before."""
        return self.source.recv(100) == b""

    def near_says(self, words: str) -> None:
        """Wait until the near relay, or its guardian, has said this."""
        wait_until(lambda: words in self.near.said(), self.near.said)

    def close(self) -> None:
        """End everything."""
        for sock in self._open:
            sock.close()
        for relay in (self.near, self.far):
            relay.kill()


@pytest.fixture
def migration(tmp_path: Path) -> Iterator[Migration]:
    made = Migration(tmp_path, "--reconnect", "1")
    yield made
    made.close()


@dataclass(frozen=True)
class Case:
    """Stream that the destination gets, its answer, and whether the source may run on."""

    size: int
    answer: bytes
    runs_on: bool


CASES = {
    "RAM": Case(5000, b"", True),
    "part of the devices": Case(DESCRIPTION - 10, b"", True),
    "refused": Case(len(WITH_ANSWERS), shut(1), True),
    "died": Case(len(WITH_ANSWERS), b"", True),
    "has it": Case(len(WITH_ANSWERS), shut(0), False),
    "has it, no description": Case(DESCRIPTION + 1, shut(0), False),
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_relay_that_ends_leaves_one_guest(
    migration: Migration, case: Case, number: signal.Signals
) -> None:
    """Broken: laws 5 and 8; a source takes its guest back that its destination runs, or does not
    although nobody has it."""
    guardian = migration.pass_on(case.size)
    os.kill(migration.near.process.pid, number)
    migration.near.process.wait(PATIENCE)
    migration.destination_ends(case.answer)
    if case.runs_on:
        assert migration.source_is_told()
    else:
        migration.near_says("the destination got the whole guest: quit the source")
        # The source still waits for its answer; it is quit by its user.
        migration.source.setblocking(False)
        with pytest.raises(BlockingIOError):
            migration.source.recv(1)
        migration.source.close()
    guardian.wait(PATIENCE)


def test_nobody_knows(migration: Migration) -> None:
    """Broken: with both relays killed, the source would run on although its guest may run there,
    or could not be made to run on."""
    guardian = migration.pass_on(len(WITH_ANSWERS))
    migration.far.kill()
    migration.near.kill()
    migration.near_says(f"(kill {guardian.pid}), and the source runs on")
    migration.source.setblocking(False)
    with pytest.raises(BlockingIOError):
        migration.source.recv(1)
    migration.source.settimeout(PATIENCE)
    guardian.terminate()
    assert migration.source_is_told()


def test_the_guardian_goes_with_its_relay(migration: Migration) -> None:
    """Broken: processes would stay behind, and a source that is done would be kept."""
    guardian = migration.pass_on(len(WITH_ANSWERS))
    migration.destination.sendall(shut(0))
    assert migration.source.recv(100) == shut(0)
    migration.source.close()
    assert migration.destination.recv(1) == b""
    migration.destination.close()
    migration.near.process.terminate()
    migration.near.process.wait(PATIENCE)
    guardian.wait(PATIENCE)
    assert "asking the far relay" not in migration.near.said()


def test_a_relay_without_a_guardian_gets_another_one(migration: Migration) -> None:
    """Broken: a guardian that was killed once would leave all later migrations without one."""
    first = migration.pass_on(5000)
    first.kill()
    migration.source.close()
    migration.destination_ends(b"")
    migration.connect()
    second = migration.pass_on(5000)
    assert second.pid != first.pid
    migration.near.kill()
    assert migration.source_is_told()


def test_a_secret_is_nowhere_to_be_read(tmp_path: Path) -> None:
    """Broken: who may list processes, or read a log, could take a guest."""
    secret = "0123456789abcdef-not-to-be-seen"
    file = tmp_path / "secret"
    file.write_text(secret)
    file.chmod(0o600)
    migration = Migration(tmp_path, secret=("--secret-file", str(file)))
    try:
        guardian = migration.pass_on(len(WITH_ANSWERS))
        near, far = (psutil.Process(one.process.pid) for one in (migration.near, migration.far))
        for process in (near, far, guardian):
            words = [*process.cmdline(), *process.environ().values()]
            assert not any(secret in word for word in words)
        migration.near.kill()
        migration.destination_ends(shut(1))
        assert migration.source_is_told()
        for relay in (migration.near, migration.far):
            assert secret not in relay.said()
            assert repr(secret.encode()) not in relay.said()
    finally:
        migration.close()
