"""The two commands of a run: how they are started, and what is known of them meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from .plan import MIB, Plan
from .processes import Family
from .qmp import NoAnswerError, ask

VMFERRY = [sys.executable, "-m", "vmferry.tools"]
DOWNTIME_LIMIT = 200
"""Downtime limit of each migration, in milliseconds."""
OVER = ("completed", "failed", "cancelled")
_ASK_EVERY = 0.3


class End:
    """A command; a service (`serve`) is asked for its state by a thread of its own."""

    def __init__(self, side: str, kind: str, folder: Path, family: Family, orphan: float) -> None:
        self.side, self.kind = side, kind
        self.orphan = orphan
        self.folder = folder
        self.migration = ""
        """Last answer of a service on its migration."""
        self.changed = time.monotonic()
        """Time at which the command ended, or the state of its migration changed."""
        self._family = family
        self._command: subprocess.Popen[bytes] | None = None
        self._stderr = folder / f"{side}.stderr"
        self._qmp = folder / f"{side}.qmp"
        self._closing = threading.Event()
        self._status: int | None = None

    def _start(self, arguments: list[str]) -> None:
        """Start a command of vmferry."""
        self._spawn([*VMFERRY, *arguments], {"OPENBLAS_NUM_THREADS": "1"})

    def _spawn(self, command: list[str], more: dict[str, str]) -> None:
        environment = self._family.environment(self.side) | more
        environment["TMPDIR"] = str(self.folder / "tmp")
        with self._stderr.open("wb") as stderr:
            self._command = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        self._family.commands[self.side] = self._command.pid
        if self.monitored:
            threading.Thread(target=self._drive, name=f"chaos-{self.side}", daemon=True).start()

    def _drive(self) -> None:
        """Ask a service for its state again and again; this is a thread."""
        while not self._closing.is_set() and self._poll() is None:
            try:
                self._ask()
            except NoAnswerError:
                # It is not there yet, or stopped, or dead.
                self._closing.wait(_ASK_EVERY)
            self._closing.wait(_ASK_EVERY)

    def _ask(self) -> None:
        status = str(ask(self._qmp, "query-migrate").get("status", ""))
        if status != self.migration:
            self.migration = status
            self.changed = time.monotonic()

    def _poll(self) -> int | None:
        if self._command is None:
            return None
        status = self._command.poll()
        if status is not None and self._status is None:
            self._status, self.changed = status, time.monotonic()
        return status

    @property
    def over(self) -> bool:
        """Return whether the migration has ended at this end, in whatever way."""
        return self._command is None or self._poll() is not None or self.migration in OVER

    @property
    def serves(self) -> bool:
        """Return whether this end is a service that is still there."""
        return self.monitored and self._command is not None and self._poll() is None

    @property
    def monitored(self) -> bool:
        """Return whether this end speaks QMP, and stays when the migration is over."""
        return self.kind not in ("send", "receive")

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to the command; its id, 0 where it has ended."""
        if self._command is None or self._poll() is not None:
            return 0
        self._command.send_signal(number)
        return self._command.pid

    def said(self) -> str:
        """Return what was written to standard error."""
        return self._stderr.read_text(errors="replace") if self._stderr.exists() else ""

    def close(self) -> int | None:
        """End its threads, and take its exit status."""
        self._closing.set()
        return None if self._command is None else self._command.wait(20)


class Destination(End):
    """`vmferry receive`, or `vmferry serve --incoming`."""

    def __init__(self, plan: Plan, folder: Path, family: Family, orphan: float) -> None:
        super().__init__("destination", plan.destination, folder, family, orphan)
        self._plan = plan
        self._socket = folder / "link"
        self._asked_port: int | None = None

    def start(self) -> None:
        """Start the destination."""
        uri = f"unix:{self._socket}" if self._plan.unix else "tcp:127.0.0.1:0"
        if self._plan.guest == "dir":
            guest = f"dir:{self.folder / 'some' / 'where' / 'guest'}"
        else:
            guest = f"synthetic:heartbeat={self.folder}/destination.beat,orphan={self.orphan:.0f}"
        options = ["--guest", guest, *self._plan.receive_options]
        if self.kind == "serve":
            self._start(["serve", *options, "--qmp", f"unix:{self._qmp}", "--incoming", uri])
        else:
            self._start(["receive", uri, *options])

    def address(self) -> str | tuple[str, int] | None:
        """Return where it listens, once it does."""
        if self._plan.unix:
            return str(self._socket) if self._socket.exists() else None
        port = self._port()
        return None if port is None else ("127.0.0.1", port)

    def _port(self) -> int | None:
        if self.kind == "serve":
            return self._asked_port
        for line in self.said().splitlines():
            if line.startswith("listening on tcp:"):
                return int(line.rpartition(":")[2])
        return None

    def _ask(self) -> None:
        super()._ask()
        if self._asked_port is None and not self._plan.unix:
            for address in ask(self._qmp, "query-migrate").get("socket-address", ()):
                self._asked_port = int(address["port"])


class Source(End):
    """`vmferry send`, or `vmferry serve` and a `migrate`."""

    def __init__(self, plan: Plan, folder: Path, family: Family, orphan: float) -> None:
        super().__init__("source", plan.source, folder, family, orphan)
        self._plan = plan
        self._uri = ""

    def start(self, uri: str) -> None:
        """Start it, to send there."""
        self._uri = uri
        size, rate = self._plan.size // MIB, self._plan.rate // MIB
        guest = f"synthetic:{size}M,dirty-rate={rate}M,seed={self._plan.number}"
        guest += f",heartbeat={self.folder}/source.beat,orphan={self.orphan:.0f}"
        if self._plan.at_rest:
            # One command at a time may use a folder.
            copy = self.folder / "guest"
            subprocess.run(["cp", "-a", "--sparse=always", self._plan.at_rest, copy], check=True)
            guest = f"dir:{copy}"
        if self.kind == "serve":
            self._start(["serve", "--guest", guest, "--qmp", f"unix:{self._qmp}"])
        else:
            limit = ("--downtime-limit", str(DOWNTIME_LIMIT))
            self._start(["send", uri, "--guest", guest, *limit, *self._plan.options])

    def _ask(self) -> None:
        super()._ask()
        if not self.migration:
            # Not asked to migrate yet, or it did not hear it.
            on = [{"capability": "return-path", "state": True}]
            ask(self._qmp, "migrate-set-capabilities", capabilities=on)
            ask(self._qmp, "migrate", uri=self._uri)

    def cancel(self) -> int:
        """Cancel the migration as its user would."""
        if not self.monitored:
            return self.signal(signal.SIGINT)
        threading.Thread(target=self._cancel, daemon=True).start()
        return 0 if self._command is None else self._command.pid

    def _cancel(self) -> None:
        try:
            ask(self._qmp, "migrate_cancel")
        except NoAnswerError:
            # A service that is stopped or dead cancels nothing.
            return
