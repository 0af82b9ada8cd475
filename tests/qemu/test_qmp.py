"""Test that one script looks the same to a client of two services and of two real QEMUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest

from tests.control.held import look_everywhere
from tests.control.serving import Monitor, Played, Serving, play, play_stopped
from tests.qemu.machine import Machine

KEYS = {
    "7.2": frozenset[tuple[str, str]](),
    # QEMU 10 has no old-style disk migration, to which `skipped` belonged.
    "10": {(state, "ram.skipped") for state in ("active", "pre-switchover", "completed")},
}
"""Members of `query-migrate`, by state, that only one of the two has."""
STATES = (
    *("setup", "active", "pre-switchover", "device", "cancelling", "cancelled"),
    *("cancelled from setup", "failed behind device"),
)
LOOKS = {
    # QEMU 7.2 does not say why, where the destination went away at the end.
    "7.2": {("failed behind device", "error-desc")},
    "10": {
        (state, "ram.skipped") for state in ("active", "pre-switchover", "device", "cancelling")
    },
}
"""Members, by version, in which the answers of held states differ from those of a QEMU."""


Script = Callable[[Monitor, Monitor, str], Played]


def played_by_services(folder: Path, script: Script = play, *options: str) -> Played:
    folder.mkdir()
    with ExitStack() as stack:
        source = Serving(folder / "source", "synthetic:32M,dirty-rate=1M")
        stack.callback(source.stop)
        destination = Serving(folder / "destination", "synthetic:", "--incoming", "defer", *options)
        stack.callback(destination.stop)
        return script(source, destination, f"unix:{folder}/migrate")


def played_by_qemu(version: str, folder: Path, script: Script = play, *options: str) -> Played:
    folder.mkdir()
    with ExitStack() as stack:
        source = Machine(version, folder / "source")
        stack.callback(source.stop)
        destination = Machine(version, folder / "destination", "-incoming", "defer", *options)
        stack.callback(destination.stop)
        source.wait_for_beats()
        return script(Monitor(source.qmp), Monitor(destination.qmp), f"unix:{folder}/migrate")


def test_services_look_like_qemu(version: str, tmp_path: Path) -> None:
    """Broken: a client made for QEMU would be told something else by a service."""
    stock = played_by_qemu(version, tmp_path / "stock")
    ours = played_by_services(tmp_path / "ours")
    assert ours.errors == stock.errors
    assert ours.events == stock.events
    assert ours.run_states == stock.run_states
    differences = {
        (state, name) for state, names in ours.keys.items() for name in names ^ stock.keys[state]
    }
    assert differences == KEYS[version]


@pytest.mark.parametrize(("option", "ours_is"), [((), ()), (("-S",), ("--paused",))])
def test_stopped_guest_stays_stopped(
    version: str, tmp_path: Path, option: tuple[str, ...], ours_is: tuple[str, ...]
) -> None:
    """Broken: a guest that somebody stopped would run at the destination."""
    stock = played_by_qemu(version, tmp_path / "stock", play_stopped, *option)
    ours = played_by_services(tmp_path / "ours", play_stopped, *ours_is)
    assert ours.events == stock.events
    assert ours.run_states == stock.run_states == ["postmigrate", "paused", "running"]


@contextmanager
def suspended(service: Serving) -> Iterator[None]:
    """Suspend the processes of a migration."""
    children = psutil.Process(service.process.pid).children()
    servers = [child for child in children if "forkserver" in "".join(child.cmdline())]
    processes = [process for server in servers for process in server.children()]
    assert processes
    for process in processes:
        process.suspend()
    yield
    for process in processes:
        process.resume()


def test_every_state_looks_like_qemu(version: str, tmp_path: Path) -> None:
    """Broken: a client that polls would miss, or stumble over, a member in some state."""
    with ExitStack() as stack:
        machine = Machine(version, tmp_path / "machine")
        stack.callback(machine.stop)
        machine.wait_for_beats()
        stock = look_everywhere(Monitor(machine.qmp), nullcontext)
        service = Serving(tmp_path / "service", "synthetic:32M,dirty-rate=1M")
        stack.callback(service.stop)
        ours = look_everywhere(service, lambda: suspended(service))
    assert set(stock.keys) == set(STATES)
    assert ours.run_states == stock.run_states
    assert ours.refused == stock.refused
    differences = {
        (state, name) for state, names in ours.keys.items() for name in names ^ stock.keys[state]
    }
    assert differences == LOOKS[version]
