"""`vmferry ctl` with a stock QEMU."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.qemu.machine import MANY_PAGES, VMFERRY, Machine, vmferry


@pytest.fixture
def socket(tmp_path: Path) -> str:
    """Return the QMP socket for people; a QEMU talks to one client at each."""
    return f"{tmp_path}/people"


@pytest.fixture
def machine(version: str, tmp_path: Path, socket: str) -> Iterator[Machine]:
    options = ("-qmp", f"unix:{socket},server=on,wait=off")
    made = Machine(version, tmp_path / "machine", *options, code=MANY_PAGES)
    yield made
    made.stop()


def test_commands(machine: Machine, socket: str) -> None:
    """Broken: nobody could steer a QEMU with it."""
    assert vmferry("ctl", socket, "stop").returncode == 0
    assert machine.ask("query-status")["running"] is False
    status = vmferry("ctl", socket, "query-status").stdout
    assert re.search(r"^running +false$", status, re.MULTILINE)
    set_up = vmferry("ctl", socket, "migrate-set-parameters", "max-bandwidth=1000", "tls-creds=x")
    assert (set_up.returncode, set_up.stdout, set_up.stderr) == (0, "", "")
    parameters = json.loads(vmferry("ctl", socket, "query-migrate-parameters", "--json").stdout)
    assert (parameters["max-bandwidth"], parameters["tls-creds"]) == (1000, "x")
    # This one is an answer of more than a hundred thousand bytes.
    assert vmferry("ctl", socket, "query-qmp-schema").stdout.count("meta-type") > 100


@pytest.mark.usefixtures("machine")
def test_refused(socket: str) -> None:
    """Broken: what a QEMU has against a command would be lost, or look like success."""
    for command, told in (
        (["nonsense"], "CommandNotFound: The command nonsense has not been found"),
        (["migrate", "uri=5"], "GenericError: "),
        (["migrate", "uri=nonsense:"], "GenericError: "),
    ):
        ran = vmferry("ctl", socket, *command)
        assert ran.returncode == 1
        assert ran.stdout == ""
        assert ran.stderr.startswith(f"vmferry: {told}")
        assert ran.stderr.count("\n") == 1


class Watching:
    """`vmferry ctl SOCKET watch`, while something else goes on."""

    def __init__(self, socket: str) -> None:
        command = [*VMFERRY, "ctl", socket, "watch"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []

    def wait_for(self, start: str) -> None:
        """Wait until the command prints a line that begins like this."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(start):
                return
        raise AssertionError(self.lines)

    def end(self) -> int:
        """Wait for the end, and return the exit status."""
        self.lines += self._process.communicate(timeout=PATIENCE)[1].splitlines()
        return self._process.returncode


def migrate_without_end(machine: Machine) -> None:
    """Begin a migration of a guest that writes more than may be sent."""
    machine.wait_for_beats()
    machine.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
    machine.ask("migrate", uri="exec:cat > /dev/null")


@pytest.mark.parametrize("events", [False, True])
def test_watch(machine: Machine, socket: str, events: bool) -> None:
    """Broken: a migration that somebody else steers could not be followed to its end."""
    watching = Watching(socket)
    watching.wait_for("waiting for a migration to begin")
    capabilities = [{"capability": "events", "state": events}]
    machine.ask("migrate-set-capabilities", capabilities=capabilities)
    migrate_without_end(machine)
    watching.wait_for("migrating: active, ")
    machine.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
    assert watching.end() == 0
    assert watching.lines[-2].startswith("migrating: completed, ")
    ended = r"the migration completed, total time \d+ ms, downtime \d+ ms"
    assert re.fullmatch(ended, watching.lines[-1])


def test_watch_one_that_is_cancelled(machine: Machine, socket: str) -> None:
    """Broken: a script that waits for the end would take it for success."""
    migrate_without_end(machine)
    watching = Watching(socket)
    watching.wait_for("migrating: active, ")
    machine.ask("migrate_cancel")
    assert watching.end() == 1
    assert watching.lines[-1] == "vmferry: the migration was cancelled"


def test_watch_one_that_fails(machine: Machine, socket: str) -> None:
    """Broken: the same, where the destination goes away."""
    machine.ask("migrate", uri="exec:exit 1")
    watching = Watching(socket)
    assert watching.end() == 1
    assert watching.lines[-1].startswith("vmferry: the migration failed")


def test_watch_the_destination(version: str, tmp_path: Path, socket: str) -> None:
    """Broken: a QEMU that takes a guest in, and gives no figures, would be a traceback."""
    source = Machine(version, tmp_path / "source")
    options = ("-qmp", f"unix:{socket},server=on,wait=off", "-incoming", f"unix:{tmp_path}/in")
    target = Machine(version, tmp_path / "target", *options)
    try:
        watching = Watching(socket)
        watching.wait_for("")
        source.migrate(f"unix:{tmp_path}/in")
        assert watching.end() == 0
        assert watching.lines[-2:] == ["migrating: completed", "the migration completed"]
    finally:
        source.stop()
        target.stop()
