"""Carry out a handover: the part of `protocol.handover` that has a channel and a clock.

This runs in the process that holds the guest, so that no guest is left waiting for a command that
died: in the guest's own process if there is one, otherwise in a thread of the coordinator. The
coordinator watches at the other end of `control`, and may send CANCEL or LEAVE there.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Generic

from ..protocol.handover import Action, Event, Handover, State
from ..transport.process import send_message
from .line import Line

STEP = 1.0
"""Seconds between two checks of a silent channel; no decision depends on it."""
LOOK_AGAIN = 0.01
"""Seconds between two checks of a channel that still holds messages already read."""
CANCEL = "cancel"
"""Command of the coordinator: the guest is wanted at its source."""
LEAVE = "leave"
"""Command of the coordinator: end now, whether the handover is over or not."""
ORPHANED = "orphaned"
"""The command that `Side` assumes when the coordinator has died."""


@dataclass(frozen=True)
class Outcome(Generic[State]):
    """The end of a handover at one side; `reason` is one line, empty on success."""

    state: State
    reason: str = ""


class Side(Generic[State, Event, Action]):
    """One side of a handover: it checks the channel, then the coordinator, then waits."""

    def __init__(
        self, line: Line, control: Connection, handover: Handover[State, Event, Action]
    ) -> None:
        self.line = line
        self.handover = handover
        self.unsent = memoryview(b"")
        """Bytes that the channel has not accepted yet."""
        self.reason = ""
        self.in_order = True
        """True if the connection is closed in order at the end, false if it is reset."""
        self._control: Connection | None = control

    def run(self) -> Outcome[State]:
        """Carry out the handover, report the Outcome to the coordinator, and return it."""
        self.begin()
        while not self.handover.over:
            before = self.handover.state
            self.look()
            self._obey()
            self.write()
            if self.handover.state is before:
                self._wait()
        outcome = Outcome(self.handover.state, self.reason)
        self.line.drain()
        self.report(outcome)
        if self.in_order:
            self.line.close()
        else:
            self.line.break_off()
        return outcome

    def begin(self) -> None:
        """Do what is due before the first check of the channel."""

    @abstractmethod
    def look(self) -> None:
        """Feed the messages that arrived on the channel."""

    @abstractmethod
    def command(self, command: str) -> None:
        """Feed a command of the coordinator."""

    @abstractmethod
    def perform(self, action: Action) -> None:
        """Perform an action of the state table."""

    @abstractmethod
    def patience(self) -> float:
        """Return the longest time, in seconds, to wait for news."""

    @property
    @abstractmethod
    def stale(self) -> bool:
        """Return whether the channel still holds bytes that were already read."""

    def feed(self, event: Event, reason: str = "") -> None:
        """Feed an event to the state table; `reason` says in one line why it is bad."""
        before = self.handover.state
        actions = self.handover.feed(event)
        if self.handover.state is not before and reason:
            self.reason = reason
        for action in actions:
            self.perform(action)

    def say(self, data: bytes) -> None:
        """Send bytes on the channel, after all earlier ones."""
        self.unsent = memoryview(bytes(self.unsent) + data)
        self.write()

    def write(self) -> None:
        """Write as much as the channel accepts now."""
        while self.unsent and (count := self.line.write(self.unsent)):
            self.unsent = self.unsent[count:]

    def report(self, message: object) -> None:
        """Send a message to the coordinator, if it lives."""
        if self._control is None:
            return
        # The next check of the coordinator finds that it died.
        with suppress(OSError):
            send_message(self._control, message)

    def _obey(self) -> None:
        while self._control is not None and self._control.poll():
            try:
                command = self._control.recv()
            except (EOFError, OSError):
                self._control, command = None, ORPHANED
            self.command(command)

    def _wait(self) -> None:
        seconds = min(self.patience(), LOOK_AGAIN) if self.stale else self.patience()
        control = None if self._control is None else self._control.fileno()
        self.line.wait(control, seconds, news=not self.stale, room=bool(self.unsent))
