"""The child processes of one migration, as their coordinator sees them: reports, ticks, deaths."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from .process import Child, ChildDied, StartError, start_child, stop_children
from .shared import wait_readable

TICK = 0.1
"""Seconds between two calls of `on_tick`."""

_LAST_WORD = 1.0
"""Seconds for the last report of a child that is gone."""

Report = TypeVar("Report")


@dataclass(frozen=True)
class Failed:
    """Report of a child that cannot go on; one line."""

    reason: str


class CrewError(Exception):
    """A process died, reported failure, or an answer did not come; one line."""


class SilenceError(CrewError):
    """A report did not arrive in time."""


class DeathError(CrewError):
    """A process died, and said nothing itself."""


class _Nothing:
    """A report that never comes."""


class Crew:
    """Starts children, waits for their reports, ends them.

    `check` is called whenever something may have happened, and `on_tick` every 100 ms; either may
    raise to leave a wait. `wake_fd` becomes readable when `check` has something to say.
    """

    def __init__(self, wake_fd: int, check: Callable[[], None]) -> None:
        self._wake_fd = wake_fd
        self._check = check
        self._children: list[Child] = []
        self._retired: list[Child] = []
        self._early: deque[object] = deque()
        self._next_tick = 0.0
        self.on_tick: Callable[[], None] = lambda: None

    def start(self, name: str, target: Callable[..., None], args: tuple[Any, ...]) -> Child:
        """Start a child; `target` gets its connection and `args`. Raises CrewError."""
        try:
            child = start_child(name, target, args, wait=self.wait_fd)
        except StartError as error:
            raise CrewError(str(error)) from error
        self._children.append(child)
        return child

    def wait_for(
        self, kind: type[Report] | tuple[type[Report], ...], timeout: float | None = None
    ) -> Report:
        """The next report, which must be of this kind.

        Raises CrewError on any other report, a death, or after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            report = self._early.popleft() if self._early else self.next_report((), deadline)
            if isinstance(report, kind):
                return report
            if report is not None:
                raise CrewError(f"a report came out of turn: {type(report).__name__}")
            if deadline is not None and time.monotonic() > deadline:
                raise SilenceError("no answer from the other side")

    def wait_fd(self, fd: int) -> None:
        """Wait until `fd` is readable; reports meanwhile are for the next `wait_for`."""
        while not wait_readable([fd], 0):
            report = self.next_report((fd,), None)
            if report is not None:
                self._early.append(report)

    def next_report(self, fds: tuple[int, ...], deadline: float | None) -> object:
        """One report, or None after a tick, at the deadline, or when one of `fds` is readable."""
        by_fd = {child.connection.fileno(): child for child in self._children}
        pidfds = [child.pidfd for child in self._children]
        until = self._next_tick if deadline is None else min(self._next_tick, deadline)
        timeout = max(0.0, until - time.monotonic())
        ready = wait_readable([*fds, *by_fd, *pidfds, self._wake_fd], timeout)
        self._check()
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK
            self.on_tick()
        for fd, child in by_fd.items():
            if fd in ready:
                return self._receive(child)
        for child in self._children:
            if child.pidfd in ready:
                raise DeathError(child.death())
        return None

    def _receive(self, child: Child) -> object:
        try:
            report = child.connection.recv()
        except (EOFError, ConnectionError):
            # The note of a fault is written before the connection is closed by it.
            raise DeathError(child.death()) from None
        if isinstance(report, ChildDied):
            raise CrewError(str(report))
        if isinstance(report, Failed):
            raise CrewError(report.reason)
        return report

    @contextmanager
    def reasons(self) -> Iterator[None]:
        """That a child could not be written to becomes a CrewError with the child's own reason."""
        try:
            yield
        except ConnectionError:
            self.wait_for(_Nothing, _LAST_WORD)

    def retire(self) -> None:
        """Watch the children no more: their work is done, and their deaths are no news."""
        self._retired += self._children
        self._children = []

    def stop(self) -> None:
        """End all children within 5 s."""
        stop_children([*self._children, *self._retired])
        self._children, self._retired = [], []
