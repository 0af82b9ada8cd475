"""SIGKILL for each process around a running QEMU, in each phase: the guest runs at one end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from qemu.qmp import QMPError

from tests.patience import PATIENCE, wait_until
from tests.qemu.machine import vmferry
from tests.qemu.running import Command, Receiving, Running, carriers

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

PHASES = ("round 0", "switchover", "answer")
"""Moments: while the guest runs, once it has stopped, and once its destination has loaded it."""


class Trial:
    """Two QEMUs, the commands that move the guest between them, and a victim."""

    def __init__(
        self, version: str, folder: Path, held: ExitStack, *, compressed: bool, limit: str
    ) -> None:
        self.source = Running(version, folder / "source")
        held.callback(self.source.stop)
        self.source.wait_for_beats()
        self.before = self.source.settings()
        self.receive: Command | None = None
        # The guest writes more than 4 MiB in each round.
        limit = limit or ("1M" if compressed else "8M")
        options = ["--max-bandwidth", limit, "--downtime-limit", "1000" if compressed else "3000"]
        if compressed:
            receiving = Receiving(version, folder)
            held.callback(receiving.close)
            self.target, self.receive, uri = receiving.qemu, receiving.command, receiving.uri
            options += ["--compress", "zstd"]
        else:
            uri = f"unix:{folder}/in"
            self.target = Running(version, folder / "target", "-incoming", uri)
            held.callback(self.target.stop)
        self.send = Command(folder / "sent", "send", uri, "--guest", self.source.text, *options)
        held.callback(self.send.kill)

    def reach(self, phase: str) -> None:
        """Wait for a moment, looking as often as possible."""
        deadline = time.monotonic() + PATIENCE
        reached: dict[str, Callable[[], bool]] = {
            "round 0": lambda: (
                self.source.ask("query-migrate").get("ram", {}).get("transferred", 0) > 0
            ),
            "switchover": lambda: self.source.state() in ("finish-migrate", "postmigrate"),
            "answer": lambda: self.target.ask("query-migrate").get("status") == "completed",
        }
        while not reached[phase]():
            assert time.monotonic() < deadline, self.send.said()

    def kill(self, victim: str) -> None:
        """Kill the victim, if it is still there."""
        if victim in ("source", "target"):
            (self.source if victim == "source" else self.target).kill()
            return
        command = self.receive if "receive" in victim else self.send
        assert command is not None
        found = [command.process.pid]
        if "carrier" in victim:
            found = carriers(command)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def settle(self) -> None:
        """Wait until nothing changes any more by itself."""

        def settled() -> bool:
            # A QEMU may end while it is asked.
            with suppress(QMPError, ConnectionError, EOFError):
                here = self.source.ended or self.source.state() in ("running", "postmigrate")
                there = self.target.ended or self.target.state() != "inmigrate" or not self._comes()
                return here and there
            return False

        wait_until(settled, self.send.said)
        for command in (self.send, self.receive):
            if command is not None:
                wait_until(lambda: command.process.poll() is not None, command.said)  # noqa: B023

    def _comes(self) -> bool:
        """Return whether the guest is still on its way."""
        return self.source.ended is False and self.source.state() == "postmigrate"

    def runs(self, qemu: Running) -> bool:
        """Return whether the guest beats in a QEMU."""
        if qemu.ended:
            return False
        return qemu.state() == "running"


@contextmanager
def trial(version: str, folder: Path, *, compressed: bool, limit: str = "") -> Iterator[Trial]:
    with ExitStack() as held:
        yield Trial(version, folder, held, compressed=compressed, limit=limit)


def judge(tried: Trial, victim: str) -> None:
    """Check that the guest runs at exactly one end, if the end that had it was not the victim."""
    here, there = tried.runs(tried.source), tried.runs(tried.target)
    said = f"{tried.send.said()}\n{tried.receive.said() if tried.receive else ''}"
    assert not (here and there), f"both run\n{said}"
    if victim == "source":
        return
    if victim == "target" and tried.source.state() == "postmigrate":
        return
    assert here or there, f"none runs\n{said}"
    survivor = tried.source if here else tried.target
    survivor.wait_for_beats()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("victim", ["send", "source", "target"])
def test_killed_as_a_guest_goes_to_a_stock_qemu(
    version: str, tmp_path: Path, victim: str, phase: str
) -> None:
    """Broken: a process that is killed would cost the guest, or double it."""
    with trial(version, tmp_path, compressed=False) as tried:
        tried.reach(phase)
        tried.kill(victim)
        tried.settle()
        judge(tried, victim)
        if victim != "source":
            wait_until(lambda: tried.source.settings() == tried.before)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "victim",
    ["send", "receive", "carrier of send", "carrier of receive", "source", "target"],
)
def test_killed_on_a_compressed_link(version: str, tmp_path: Path, victim: str, phase: str) -> None:
    """Broken: a process that is killed would cost the guest, or double it."""
    with trial(version, tmp_path, compressed=True) as tried:
        tried.reach(phase)
        tried.kill(victim)
        tried.settle()
        judge(tried, victim)
        if victim != "source":
            wait_until(lambda: tried.source.settings() == tried.before)


def test_a_second_attempt_follows_a_kill(version: str, tmp_path: Path) -> None:
    """Broken: after a kill the settings would stay, or nothing would work any more."""
    with trial(version, tmp_path, compressed=True, limit="8K") as tried:
        tried.reach("round 0")
        tried.kill("send")
        tried.settle()
        wait_until(lambda: tried.source.settings() == tried.before)
        (tmp_path / "again").mkdir()
        again = Receiving(version, tmp_path / "again")
        try:
            ran = vmferry("send", again.uri, "--guest", tried.source.text, "--compress", "zstd")
            assert ran.returncode == 0, ran.stderr
            assert again.command.wait() == 0
            again.qemu.wait_for_beats()
        finally:
            again.close()
