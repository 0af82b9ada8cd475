"""`vmferry serve` in a process, with a QMP client; and one script for any two QMP ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qemu.qmp.error import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol
from qemu.qmp.qmp_client import ExecuteError
from vmferry.control.extensions import PREFIX

from tests.patience import PATIENCE, wait_until

SERVE = [sys.executable, "-m", "vmferry.tools.cli", "serve"]
RUNNING = ("setup", "active", "pre-switchover", "device", "cancelling")

Event = tuple[str, Any]


class Nobody:
    """A client that passes no descriptors."""

    def take_fd(self) -> int | None:
        """Return None: there are no descriptors."""
        return None


class Monitor:
    """A QMP client that remembers events."""

    def __init__(self, qmp: QEMUMonitorProtocol) -> None:
        self.qmp = qmp

    def ask(self, name: str, **arguments: Any) -> Any:
        """Return the result of a command."""
        return self.qmp.cmd(name, **{key.replace("_", "-"): v for key, v in arguments.items()})

    def error(self, name: str, **arguments: Any) -> str:
        """Return class and text of the error that a command must raise."""
        try:
            result = self.qmp.cmd(name, **arguments)
        except ExecuteError as error:
            return f"{error.error_class}: {error}"
        raise AssertionError(f"{name} {arguments} gave {result!r}")

    def set(self, **capabilities: bool) -> None:
        """Set capabilities, with `_` for `-`."""
        wanted = [
            {"capability": name.replace("_", "-"), "state": state}
            for name, state in capabilities.items()
        ]
        self.qmp.cmd("migrate-set-capabilities", capabilities=wanted)

    def wait_for(self, *statuses: str) -> dict[str, Any]:
        """Wait until `query-migrate` reports one of these, and return its answer."""
        deadline = time.monotonic() + PATIENCE
        while True:
            answer: dict[str, Any] = self.ask("query-migrate")
            if answer.get("status") in statuses:
                return answer
            assert answer.get("status", "none") in ("none", *RUNNING), answer
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)

    def wait_for_bytes(self, least: int) -> int:
        """Wait until so many bytes were sent; return how many there are."""
        sent: list[int] = []

        def enough() -> bool:
            sent.append(self.ask("query-migrate").get("ram", {}).get("transferred", 0))
            return sent[-1] >= least

        wait_until(enough)
        return sent[-1]

    def wait_until_over(self) -> str:
        """Wait for the end of the migration, and return its status."""
        return str(self.wait_for("completed", "failed", "cancelled")["status"])

    def run_state(self) -> str:
        """Return the run state of the guest."""
        return str(self.ask("query-status")["status"])

    def events(self) -> list[Event]:
        """Name and what it says, of all events since the last call."""
        # A question's answer comes behind the events that were before it.
        self.qmp.cmd("query-status")
        found = [
            (str(event["event"]), next(iter(event.get("data", {}).values()), None))
            for event in self.qmp.get_events()
        ]
        self.qmp.clear_events()
        return found


class Serving(Monitor):
    """`vmferry serve --guest GUEST OPTIONS`, by way of the command `inside`."""

    def __init__(
        self, folder: Path, guest: str, *options: str, inside: tuple[str, ...] = ()
    ) -> None:
        folder.mkdir()
        self.address = f"{folder}/qmp"
        self.process = subprocess.Popen(
            [*inside, *SERVE, "--guest", guest, "--qmp", f"unix:{self.address}", *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line == f"QMP on unix:{self.address}\n", line + self.process.stderr.read()
        super().__init__(self.connect())

    def connect(self) -> QEMUMonitorProtocol:
        """Connect another client."""
        qmp = QEMUMonitorProtocol(self.address)
        qmp.connect()
        return qmp

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and the output."""
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said

    def stop(self) -> None:
        """End it, if it has not ended."""
        # These are raised where the service ended first.
        with contextlib.suppress(EOFError, OSError, QMPError):
            self.qmp.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=PATIENCE)


Serve = Callable[..., Serving]


def keys(answer: dict[str, Any]) -> set[str]:
    """Return the names of all members, inner ones behind the outer name, without vmferry's own."""
    answer = {name: value for name, value in answer.items() if not name.startswith(PREFIX)}
    found = set(answer)
    for name, value in answer.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}" for inner in value}
    return found


WRONG: tuple[tuple[str, dict[str, Any]], ...] = (
    ("nope", {}),
    ("migrate", {}),
    ("migrate", {"uri": 3}),
    ("migrate", {"uri": "tcp:127.0.0.1:1", "nope": True}),
    ("migrate", {"uri": "tcp:127.0.0.1:1", "detach": 1}),
    ("migrate", {"uri": "foo:bar"}),
    ("migrate", {"uri": "x-rdma:host:1"}),
    ("migrate", {"uri": "tcp:nocolon"}),
    ("migrate", {"uri": "fd:nope"}),
    ("migrate", {"uri": "tcp:127.0.0.1:1", "resume": True}),
    ("migrate-set-capabilities", {}),
    ("migrate-set-capabilities", {"capabilities": 3}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "nope", "state": True}]}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle"}]}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle", "state": 1}]}),
    ("migrate-set-parameters", {"downtime-limit": 2000001}),
    ("migrate-set-parameters", {"max-bandwidth": "1"}),
    ("migrate-set-parameters", {"cpu-throttle-initial": 0}),
    ("migrate-set-parameters", {"cpu-throttle-increment": 100}),
    ("migrate-set-parameters", {"max-cpu-throttle": 5}),
    ("migrate-set-parameters", {"throttle-trigger-threshold": 101}),
    ("migrate-set-parameters", {"xbzrle-cache-size": 5000}),
    ("migrate-set-parameters", {"announce-step": 0}),
    ("migrate-set-parameters", {"nope": 1}),
    ("migrate-continue", {"state": "pre-switchover"}),
    ("migrate-continue", {"state": "nope"}),
    ("migrate-incoming", {"uri": "tcp:127.0.0.1:0"}),
    ("migrate-pause", {}),
    ("getfd", {"fdname": "x"}),
    ("closefd", {"fdname": "x"}),
    ("qmp_capabilities", {}),
    ("query-status", {"x": 1}),
)
"""Commands that a source with no migration refuses."""


class Played:
    """Record of what an observer saw of the script."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}
        """Class of the error for each thing that was asked."""
        self.events: dict[str, list[Event]] = {}
        """Events of each step and side, without passes, which depend on how busy the guest is."""
        self.keys: dict[str, set[str]] = {}
        """Members of `query-migrate` in each state of the source."""
        self.run_states: list[str] = []

    def refused(self, side: Monitor, name: str, **arguments: Any) -> None:
        """Note the class of the error."""
        case = f"{len(self.errors)}: {name} {sorted(arguments)}"
        self.errors[case] = side.error(name, **arguments).partition(":")[0]

    def heard(self, step: str, side: Monitor) -> None:
        """Note the events since the last call."""
        events = side.events()
        names = [name for name, _ in events]
        first = names.index("MIGRATION_PASS") if "MIGRATION_PASS" in names else -1
        end = names.index("STOP") if "STOP" in names else len(names)
        self.events[step] = [
            (name, None if name == "MIGRATION_PASS" else said)
            for index, (name, said) in enumerate(events)
            if name != "MIGRATION_PASS" or index == first or index > end
        ]


def play(source: Monitor, destination: Monitor, uri: str) -> Played:
    """Run migrations that fail, are cancelled, and succeed, from a running source to `uri`."""
    seen = Played()
    seen.keys["none"] = keys(source.ask("query-migrate"))
    for name, arguments in WRONG:
        seen.refused(source, name, **arguments)
    source.set(events=True, xbzrle=True)
    destination.set(events=True)
    source.ask("migrate", uri="tcp:127.0.0.1:1")
    seen.keys["failed"] = keys(source.wait_for("failed"))
    seen.heard("failed", source)
    seen.run_states.append(source.run_state())
    _cancel(seen, source)
    _complete(seen, source, destination, uri)
    return seen


def _cancel(seen: Played, source: Monitor) -> None:
    source.ask("migrate-set-parameters", max_bandwidth=200_000)
    source.ask("migrate", uri="exec:cat > /dev/null")
    seen.keys["active"] = keys(source.wait_for("active"))
    seen.refused(source, "migrate", uri="exec:cat > /dev/null")
    off = [{"capability": "xbzrle", "state": False}]
    seen.refused(source, "migrate-set-capabilities", capabilities=off)
    source.ask("migrate_cancel")
    seen.keys["cancelled"] = keys(source.wait_for("cancelled"))
    seen.heard("cancelled", source)
    seen.run_states.append(source.run_state())


def _complete(seen: Played, source: Monitor, destination: Monitor, uri: str) -> None:
    source.set(pause_before_switchover=True)
    seen.refused(destination, "migrate", uri="tcp:127.0.0.1:1")
    seen.run_states.append(destination.run_state())
    destination.ask("migrate-incoming", uri=uri)
    seen.refused(destination, "migrate-incoming", uri=uri)
    source.ask("migrate", uri=uri)
    source.wait_for("active")
    source.ask("migrate-set-parameters", max_bandwidth=0)
    seen.keys["pre-switchover"] = keys(source.wait_for("pre-switchover"))
    seen.run_states.append(source.run_state())
    seen.refused(source, "cont")
    seen.refused(source, "migrate-continue", state="device")
    source.ask("migrate-continue", state="pre-switchover")
    seen.keys["completed"] = keys(source.wait_for("completed"))
    destination.wait_for("completed")
    seen.heard("completed at source", source)
    seen.heard("completed at destination", destination)
    seen.run_states += [source.run_state(), destination.run_state()]
    seen.refused(source, "migrate", uri="tcp:127.0.0.1:2")
    source.ask("cont")
    source.ask("stop")
    seen.heard("continued", source)
    seen.run_states.append(source.run_state())


def play_stopped(source: Monitor, destination: Monitor, uri: str) -> Played:
    """Migrate a stopped guest to where guests run on, and let it run there."""
    seen = Played()
    for side in (source, destination):
        side.set(events=True)
    source.ask("stop")
    destination.ask("migrate-incoming", uri=uri)
    source.ask("migrate", uri=uri)
    source.wait_for("completed")
    destination.wait_for("completed")
    # How many passes there are without a running guest, and through which states, differs.
    stops = [event for event in source.events() if event[0] in ("STOP", "RESUME")]
    seen.events["stopped source"] = stops
    seen.heard("destination of it", destination)
    seen.run_states += [source.run_state(), destination.run_state()]
    destination.ask("cont")
    seen.heard("continued", destination)
    seen.run_states.append(destination.run_state())
    return seen
