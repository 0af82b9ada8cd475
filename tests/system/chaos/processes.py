"""The processes of a run: found by a variable of their environment, named by their role.

A process is found however it came to be, also when all its ancestors are dead. Both sides of a run
have variables of their own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from .plan import ROLES

TAG = "VMFERRY_CHAOS"
"""The variable of the environment; its value is `RUN:SIDE`."""
_SETTLED = 2.0
"""Seconds after which a process has executed its program, and will not change its environment."""


@dataclass
class Process:
    """A process of a run. `identity` is its start time, which no later process with its id has."""

    pid: int
    identity: str
    side: str
    first_seen: float

    def stat(self) -> list[str] | None:
        """Return the fields of /proc/PID/stat behind the name, if it is still this process."""
        fields = _stat(self.pid)
        return fields if fields is not None and fields[19] == self.identity else None

    @property
    def alive(self) -> bool:
        """Return whether the process runs; one that only waits for its exit status to be read does
        not.
        """
        fields = self.stat()
        return fields is not None and fields[0] not in "ZX"

    @property
    def parent(self) -> int:
        """Return its parent's id, 0 if it is gone."""
        fields = self.stat()
        return 0 if fields is None else int(fields[1])

    @property
    def command_line(self) -> str:
        """Return its command line, empty if it is gone."""
        with suppress(OSError), open(f"/proc/{self.pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        return ""

    def kill(self, number: signal.Signals) -> bool:
        """Send a signal; whether it was there to get it."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.alive:
                return False
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None


class Family:
    """All processes of one run, also those that were there before."""

    def __init__(self, tag: str) -> None:
        self._tag = f"{TAG}={tag}:".encode()
        self._known: dict[tuple[int, str], Process | float] = {}
        """Processes by id and start time; for one that is not of this run, when it was seen first.
        """
        self._roles: dict[tuple[int, str], str] = {}
        self.commands: dict[str, int] = {}
        """The commands' own ids, by side."""

    def environment(self, side: str) -> dict[str, str]:
        """Return the environment of a command of this side."""
        return {**os.environ, TAG: f"{self._tag.decode().partition('=')[2]}{side}"}

    def scan(self) -> None:
        """Look for new processes."""
        now = time.monotonic()
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            fields = _stat(int(name))
            if fields is None:
                continue
            key = int(name), fields[19]
            known = self._known.get(key)
            if isinstance(known, Process) or (known is not None and now - known > _SETTLED):
                continue
            side = self._side(key[0])
            first = known if isinstance(known, float) else now
            self._known[key] = Process(*key, side, now) if side else first
        for process in self.all():
            self.role(process)

    def _side(self, pid: int) -> str:
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            for item in file.read().split(b"\0"):
                if item.startswith(self._tag):
                    return item[len(self._tag) :].decode()
        return ""

    def all(self) -> Iterator[Process]:
        """Return every process that was ever seen."""
        return (found for found in list(self._known.values()) if isinstance(found, Process))

    def alive(self) -> list[Process]:
        """Look again, and return those that are there."""
        self.scan()
        return [process for process in self.all() if process.alive]

    def role(self, process: Process) -> str:
        """Return which of ROLES the process has, `child` for a forkserver's, or `other`.

        Once known, it is remembered: a parent may die.
        """
        key = process.pid, process.identity
        if self._roles.get(key, "other") == "other":
            self._roles[key] = self._find_role(process)
        return self._roles[key]

    def _find_role(self, process: Process) -> str:
        line = process.command_line
        if process.pid == self.commands.get(process.side):
            return "command"
        if "synthetic_process" in line:
            return "guest"
        if "forkserver" not in line:
            return "other"
        parents = [key for key, role in self._roles.items() if role == "forkserver"]
        return "child" if process.parent in [pid for pid, _ in parents] else "forkserver"

    def find(self, side: str, role: str) -> Process | None:
        """Return the process of this side with this role, if there is one.

        The transport process is the first that a forkserver started; others are workers.
        """
        assert role in ROLES
        own = [process for process in self.alive() if process.side == side]
        own.sort(key=lambda process: (int(process.identity), process.pid))
        roles = [(self.role(process), process) for process in own]
        children = [process for name, process in roles if name == "child"]
        if role == "transport":
            return next(iter(children), None)
        if role == "worker":
            return next(iter(children[1:]), None)
        return next((process for name, process in roles if name == role), None)

    def describe(self, process: Process) -> str:
        """Return side, role and command line of a process."""
        return f"{process.side} {self.role(process)} {process.pid} ({process.command_line[:100]})"
