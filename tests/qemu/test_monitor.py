"""Test queries of a running QEMU, and settings that are changed and put back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from vmferry.guest.qemu import queries
from vmferry.guest.qemu.log import Log
from vmferry.guest.qemu.monitor import GoneError, Monitor, QemuError
from vmferry.guest.qemu.queries import Block
from vmferry.guest.qemu.settings import Settings, Wanted

from tests.patience import wait_until
from tests.qemu.machine import BareMachine, qemu_command

pytestmark = pytest.mark.qemu

MIB = 1 << 20


class Watched(BareMachine):
    """A QEMU with a second monitor, at `socket`, and a log."""

    def __init__(self, version: str, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.socket, self.log = folder / "second", folder / "log"
        command, environment = qemu_command(version)
        logged = ["sh", "-c", f'exec "$@" 2>{self.log}', "sh"]
        second = ("-qmp", f"unix:{self.socket},server=on,wait=off")
        super().__init__([*logged, *command], folder, *second, *options, environment=environment)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def machine(version: str, tmp_path: Path) -> Iterator[Watched]:
    machine = Watched(version, tmp_path / "machine", "-machine", "pc-i440fx-7.2", "-m", "64")
    try:
        yield machine
    finally:
        machine.stop()


@pytest.fixture
def monitor(machine: Watched) -> Iterator[Monitor]:
    with closing(Monitor(str(machine.socket))) as monitor:
        yield monitor


def test_a_running_qemu_says_what_it_is(version: str, monitor: Monitor) -> None:
    """Broken: a migration would be compared with another machine than the one that runs."""
    told = queries.version(monitor)
    assert str(told).startswith(f"QEMU {version}")
    assert queries.machine_type(monitor) == "pc-i440fx-7.2"
    assert queries.ram_size(monitor) == 64 * MIB
    blocks = queries.ram_blocks(monitor)
    assert blocks["pc.ram"] == Block(64 * MIB, 64 * MIB)
    assert not blocks["pc.ram"].takes(32 * MIB)
    assert blocks["/rom@etc/acpi/tables"].takes(2 * MIB)
    assert queries.is_running(monitor)
    assert queries.migration(monitor)["status"] == "none"
    assert queries.blockers(monitor) == []
    assert "pc-i440fx-7.2" in queries.command_line(monitor)


def test_settings_are_put_back(monitor: Monitor) -> None:
    """Broken: a second attempt, or another program, would migrate with settings of the first."""
    before = Settings(monitor)
    settings = Settings(monitor)
    settings.change(Wanted({"xbzrle": True}, {"max-bandwidth": 5 * MIB, "downtime-limit": 7}))
    changed = Settings(monitor)
    assert changed.capabilities == {**before.capabilities, "xbzrle": True}
    wanted = {"max-bandwidth": 5 * MIB, "downtime-limit": 7}
    assert changed.parameters == {**before.parameters, **wanted}
    settings.restore()
    after = Settings(monitor)
    assert after.capabilities == before.capabilities
    assert after.parameters == before.parameters


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted({"xbzrle": True, "no-such": True}),
        Wanted({"xbzrle": True}, {"no-such": 1}),
        Wanted({"xbzrle": True}, {"downtime-limit": -1}),
        Wanted({"xbzrle": True}, {"xbzrle-cache-size": 1000}),
    ],
    ids=str,
)
def test_settings_that_qemu_refuses_change_nothing(monitor: Monitor, wanted: Wanted) -> None:
    """Broken: a command that fails would leave half of its settings behind."""
    before = Settings(monitor)
    with pytest.raises(QemuError):
        Settings(monitor).change(wanted)
    assert Settings(monitor).capabilities == before.capabilities
    assert Settings(monitor).parameters == before.parameters


def test_a_monitor_that_is_taken_is_named(monitor: Monitor) -> None:
    """Broken: a command would wait for ever where libvirt holds the monitor."""
    with pytest.raises(QemuError, match=r"second -qmp"):
        Monitor(monitor.path)
    assert queries.is_running(monitor)


def test_there_is_nobody(tmp_path: Path) -> None:
    """Broken: a wrong path would end in a traceback."""
    with pytest.raises(QemuError, match=r"nothing: no QEMU to talk to: No such file"):
        Monitor(str(tmp_path / "nothing"))


def test_a_qemu_that_dies_is_noticed(version: str, tmp_path: Path) -> None:
    """Broken: a command would wait for a QEMU that was killed."""
    machine = Watched(version, tmp_path / "machine")
    with closing(Monitor(str(machine.socket))) as monitor:
        machine.qmp.close()
        machine.kill()
        with pytest.raises(GoneError):
            wait_until(lambda: monitor.ask("query-status") is None)


def test_a_descriptor_is_given(monitor: Monitor) -> None:
    """Broken: no stream of a QEMU would reach this process."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monitor.give("stream", theirs.fileno())
        theirs.close()
        monitor.ask("migrate", uri="fd:stream")
        ours.settimeout(60)
        assert ours.recv(4) == b"QEVM"
    wait_until(lambda: queries.migration(monitor)["status"] == "failed")
    assert queries.is_running(monitor)


def test_events_are_heard(monitor: Monitor) -> None:
    """Broken: nobody would hear that somebody else stopped the guest."""
    heard: list[str] = []
    monitor.add_listener(lambda name, _: heard.append(name))
    monitor.ask("stop")
    monitor.ask("cont")
    wait_until(lambda: heard[-2:] == ["STOP", "RESUME"], lambda: str(heard))


def test_the_log_says_why(version: str, tmp_path: Path) -> None:
    """Broken: who sees that a QEMU refused a guest would not know where to look."""
    machine = Watched(version, tmp_path / "machine")
    with closing(Monitor(str(machine.socket))) as monitor:
        log, other = Log(monitor.process), Log(0, "the destination's")
    assert str(log) == f"its log {machine.log} may say why"
    machine.stop()
    assert "terminating on signal 15" in str(log)
    assert str(other) == "the destination's log says why"
