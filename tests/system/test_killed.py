"""Whole commands whose processes are killed, or cut off from each other, at any moment (law 5).

The source guest runs on, the destination never starts, and every process but the source guest is
gone within seconds.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until

VMFERRY = [sys.executable, "-m", "vmferry.tools"]
GONE_WITHIN = 10.0
"""Seconds; 5, and as many again for a busy machine."""


class Relay:
    """Stands between the two ends, and can cut them off from each other."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._run, args=(port,), daemon=True)]
        self._threads[0].start()

    def _run(self, port: int) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", port))
                self._ends += [near, far]
                for ways in ((near, far), (far, near)):
                    self._threads.append(
                        threading.Thread(target=self._pass, args=ways, daemon=True)
                    )
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            self.cut()

    def cut(self) -> None:
        """Break both connections."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # Wakes the thread that accepts.
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for end in self._ends:
            end.close()


class Migration:
    """`vmferry send` and `vmferry receive` on their way, with guests that tell how they are."""

    def __init__(self, folder: Path, pool: list[str]) -> None:
        self.folder = folder
        self.receive = subprocess.Popen(
            [
                *(*VMFERRY, "receive", "tcp:127.0.0.1:0", *pool),
                *("--guest", "synthetic:heartbeat=destination,orphan=60"),
            ],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.receive.stderr is not None
        address = self.receive.stderr.readline().removeprefix("listening on ").strip()
        self.relay = Relay(int(address.rpartition(":")[2]))
        guest = "synthetic:32M,dirty-rate=20M,heartbeat=source,orphan=60"
        self.send = subprocess.Popen(
            [
                *(*VMFERRY, "send", f"tcp:127.0.0.1:{self.relay.port}", *pool),
                *("--guest", guest, "--max-bandwidth", "16M", "--downtime-limit", "0"),
            ],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Until the first round there may be no children to kill.
        wait_until((folder / "source").exists)

    def beat(self, side: str) -> tuple[int, int, bool] | None:
        """Return the guest's process, its counter and whether it runs, if it is there."""
        with suppress(FileNotFoundError):
            pid, counter, running = (self.folder / side).read_text().split()
            return int(pid), int(counter), running == "1"
        return None

    def processes(self) -> dict[str, psutil.Process]:
        """Return all processes of both commands but the source guest, by side and number."""
        guest = self.beat("source")
        found = {}
        for side, command in (("send", self.send), ("receive", self.receive)):
            found[side] = psutil.Process(command.pid)
            for child in found[side].children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if guest is None or child.pid != guest[0]:
                        found[f"{side} {child.pid}"] = child
        return found

    def check(self, victim: str) -> None:
        """Check all that must be true some time after the deed."""
        deadline = time.monotonic() + GONE_WITHIN
        assert self.send.wait(GONE_WITHIN) != 0
        if self._still_listens():
            # The source died before its first byte, and another one may come.
            self.receive.terminate()
        assert self.receive.wait(deadline - time.monotonic()) != 0
        spared = {self._spared(), self.send.pid, self.receive.pid}
        left = [process for process in self.known.values() if process.pid not in spared]
        _, alive = psutil.wait_procs(left, timeout=max(0.0, deadline - time.monotonic()))
        assert alive == [], [p.cmdline() for p in alive]
        destination = self.beat("destination")
        assert destination is None or not destination[2], victim
        source = self.beat("source")
        assert source is not None
        wait_until(lambda: (self.beat("source") or source)[1] > source[1])

    def _still_listens(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            connections = psutil.Process(self.receive.pid).net_connections()
            return any(found.status == psutil.CONN_LISTEN for found in connections)
        return False

    def _spared(self) -> int | None:
        guest = self.beat("destination")
        return None if guest is None else guest[0]

    def remember(self) -> None:
        """Note who is there, before somebody is killed."""
        self.known = self.processes()

    def close(self) -> None:
        self.relay.close()
        for side in ("source", "destination"):
            guest = self.beat(side)
            if guest is not None:
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(guest[0]).kill()
        for command in (self.send, self.receive):
            command.kill()
            command.communicate()


POOLS = {
    "0 workers": ["--workers", "0"],
    "2 workers": ["--workers", "2"],
    "2 channels": ["--multifd-channels", "2"],
}


@pytest.fixture(params=POOLS)
def migration(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Migration]:
    before = shared_memory()
    running = Migration(tmp_path, POOLS[request.param])
    yield running
    running.close()
    assert shared_memory() == before


def shared_memory() -> set[str]:
    """Return the names in /dev/shm."""
    return {path.name for path in Path("/dev/shm").iterdir()}


def random_victim(migration: Migration, side: str, generator: random.Random) -> psutil.Process:
    """Return a process of the migration: a child of the fork server, which is a child of the
    command.
    """
    command = migration.known[side].pid
    found: list[psutil.Process] = []
    deadline = time.monotonic() + PATIENCE
    while not found:
        assert time.monotonic() < deadline
        migration.remember()
        named = sorted(item for item in migration.known.items() if item[0].startswith(f"{side} "))
        with suppress(psutil.NoSuchProcess):
            found = [process for _, process in named if process.ppid() != command]
    return generator.choice(found)


@pytest.mark.parametrize("after", [0.05, 1.5], ids=["early", "later"])
@pytest.mark.parametrize("victim", ["send", "receive", "send child", "receive child", "relay"])
def test_source_runs_on(migration: Migration, victim: str, after: float) -> None:
    """Broken: a crash or a cut would cost the guest, or let it run twice."""
    generator = random.Random(f"{victim} {after}")
    time.sleep(after)
    migration.remember()
    if victim == "relay":
        migration.relay.cut()
    elif victim.endswith("child"):
        random_victim(migration, victim.split(maxsplit=1)[0], generator).kill()
    else:
        migration.known[victim].kill()
    migration.check(victim)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_cancels(migration: Migration, number: signal.Signals) -> None:
    """Broken: Ctrl-C would cost the guest, or be a traceback."""
    time.sleep(1.0)
    migration.remember()
    migration.send.send_signal(number)
    assert migration.send.wait(GONE_WITHIN) == 1
    assert migration.send.stderr is not None
    assert migration.send.stderr.read().splitlines()[-1] == "vmferry: cancelled"
    if migration._still_listens():
        migration.receive.terminate()
    migration.receive.wait(GONE_WITHIN)
    destination = migration.beat("destination")
    assert destination is None or not destination[2]
