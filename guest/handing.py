"""A handover under way: the part of `protocol.handover` that has a channel and a clock.

It runs in the process that holds the guest, so that no command's death leaves a guest behind that
waits for it: in the guest's own process where there is one, else in a thread of the coordinator.
The coordinator watches at the other end of `control`, where it may also send CANCEL or LEAVE.
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
"""Seconds between two looks at a channel that brings nothing; nothing is decided by it."""
LOOK_AGAIN = 0.01
"""Seconds between two looks at a channel on which messages lie that were looked at before."""
CANCEL = "cancel"
"""From the coordinator: the guest is wanted at its source."""
LEAVE = "leave"
"""From the coordinator: it ends now, whether the handover is over or not."""
ORPHANED = "orphaned"
"""The coordinator died."""


@dataclass(frozen=True)
class Outcome(Generic[State]):
    """The end of a handover at one side. `reason`: one line; empty where all went well."""

    state: State
    reason: str = ""


class Side(Generic[State, Event, Action]):
    """One side of a handover: looks at the channel, then at the coordinator, then waits."""

    def __init__(
        self, line: Line, control: Connection, handover: Handover[State, Event, Action]
    ) -> None:
        self.line = line
        self.handover = handover
        self.unsent = memoryview(b"")
        """Bytes that the channel has not taken yet."""
        self.reason = ""
        self.in_order = True
        """Whether the connection is to be closed in order, not reset."""
        self._control: Connection | None = control

    def run(self) -> Outcome[State]:
        """Hand over, report the Outcome to the coordinator, and return it."""
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
        """Do what comes before the first look at the channel."""

    @abstractmethod
    def look(self) -> None:
        """Feed what the channel brought."""

    @abstractmethod
    def command(self, command: str) -> None:
        """Feed what the coordinator wants."""

    @abstractmethod
    def perform(self, action: Action) -> None:
        """Do what the table says."""

    @abstractmethod
    def patience(self) -> float:
        """Return the seconds to wait for news at most."""

    @property
    @abstractmethod
    def stale(self) -> bool:
        """Whether bytes lie on the channel that were looked at before."""

    def feed(self, event: Event, reason: str = "") -> None:
        """Take in news, of which `reason` says in a line why they are bad."""
        before = self.handover.state
        actions = self.handover.feed(event)
        if self.handover.state is not before and reason:
            self.reason = reason
        for action in actions:
            self.perform(action)

    def say(self, data: bytes) -> None:
        """Put bytes on the channel behind all others."""
        self.unsent = memoryview(bytes(self.unsent) + data)
        self.write()

    def write(self) -> None:
        """Write what the channel takes now."""
        while self.unsent and (count := self.line.write(self.unsent)):
            self.unsent = self.unsent[count:]

    def report(self, message: object) -> None:
        """Send a message to the coordinator, if it lives."""
        if self._control is None:
            return
        # Its death is news of its own, which the next look at it brings.
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
