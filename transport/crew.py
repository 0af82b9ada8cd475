"""Manage the child processes of one migration: their reports, ticks and deaths."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from ..protocol.errors import VmferryError
from .process import Child, ChildDied, StartError, send_message, start_child, stop_children
from .shared import wait_readable

TICK = 0.1
"""Seconds between two calls of `on_tick`."""

_LAST_WORD = 1.0
"""Seconds to wait for the last report of a child that is gone."""
Report = TypeVar("Report")


@dataclass(frozen=True)
class Failed:
    """Report of a child that cannot continue; the reason is one line."""

    reason: str


@contextmanager
def reporting(
    connection: Connection, *kinds: type[VmferryError], prefix: str = ""
) -> Iterator[None]:
    """Report an error of these kinds to the parent as Failed, instead of dying of it."""
    try:
        yield
    except kinds as error:
        send_message(connection, Failed(f"{prefix}{error}"))


class CrewError(VmferryError):
    """A child that died or reported failure, or an answer that did not arrive; one line."""


class SilenceError(CrewError):
    """A report that did not arrive in time."""


class DeathError(CrewError):
    """A child that died without a report of its own."""


class Crew:
    """The child processes of a migration: it starts them, waits for their reports, and ends them.

    `check` is called after every wait, and `on_tick` every 100 ms; either may raise to end a wait.
    `wake_fd` becomes readable when `check` has something to report.
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
        """Start a child that calls `target` with its connection and `args`. Raises CrewError."""
        try:
            child = start_child(name, target, args, wait=self.wait_fd)
        except StartError as error:
            raise CrewError(str(error)) from error
        self._children.append(child)
        return child

    def wait_for(
        self, kind: type[Report] | tuple[type[Report], ...], timeout: float | None = None
    ) -> Report:
        """Return the next report, which must be of this kind.

        Raises CrewError on any other report, a death, or after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            report = self._early.popleft() if self._early else self.next_report((), deadline)
            if isinstance(report, kind):
                return report
            if report is not None:
                raise CrewError(f"a report arrived out of turn: {type(report).__name__}")
            if deadline is not None and time.monotonic() > deadline:
                raise SilenceError("no answer from the other side")

    def wait_fd(self, fd: int) -> None:
        """Wait until `fd` is readable; keep reports that arrive meanwhile for `wait_for`."""
        while not wait_readable([fd], 0):
            report = self.next_report((fd,), None)
            if report is not None:
                self._early.append(report)

    def next_report(self, fds: tuple[int, ...], deadline: float | None) -> object:
        """Return one report, or None after a tick, at the deadline, or if any of `fds` is ready."""
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
            # A child writes the record of its fault before its connection closes.
            raise DeathError(child.death()) from None
        if isinstance(report, ChildDied):
            report.log()
            raise CrewError(str(report))
        if isinstance(report, Failed):
            raise CrewError(report.reason)
        return report

    @contextmanager
    def reasons(self) -> Iterator[None]:
        """Turn a failed write to a child into a CrewError with the child's own reason."""
        try:
            yield
        except ConnectionError:
            deadline = time.monotonic() + _LAST_WORD
            while time.monotonic() < deadline:
                # Other children may still report what they have done.
                self.next_report((), deadline)
            raise SilenceError("no answer from the other side") from None

    def retire(self) -> None:
        """Stop watching the children: their work is done, and their deaths are not reported."""
        self._retired += self._children
        self._children = []

    def stop(self) -> None:
        """End all children within 5 s."""
        stop_children([*self._children, *self._retired])
        self._children, self._retired = [], []
