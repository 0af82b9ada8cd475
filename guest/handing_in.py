"""The destination's side of a handover: promise that the guest is whole, and wait for CONFIRM."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

from ..protocol.handover import (
    DESTINATION,
    Destination,
    DestinationAction,
    DestinationEvent,
    Handover,
    Peer,
    Word,
)
from ..protocol.return_path import pong, shut
from .errors import GuestError
from .handing import CANCEL, LEAVE, STEP, Outcome, Side
from .line import Line

PROMISED = "promised"
"""Report before the Outcome: SHUT 0 was sent."""
BEHIND_THE_END = "the source sent something behind the end of its stream"


@dataclass(frozen=True)
class DestinationJob:
    """The data that a destination needs once the guest is whole.

    `confirm` and `abort` are PING(CONFIRM) and PING(ABORT) as this source puts them on the wire.
    `running` lets the guest execute, unless its state says that it was stopped. `promised` says
    that a process that died may have sent SHUT 0 already. `rest` has bytes that were read behind
    the end of the stream.
    """

    peer: Peer
    return_path: bool
    running: bool
    confirm: bytes
    abort: bytes
    promised: bool = False
    rest: bytes = b""


class DestinationHolder(Protocol):
    """A guest as its destination holds it: whole, and not started."""

    def complete(self, *, running: bool) -> None:
        """Complete the guest, and with `running` let it execute. Raises GuestError."""


class HandingIn(Side[Destination, DestinationEvent, DestinationAction]):
    """The destination's side, over a duplicate of the channel that this object owns."""

    def __init__(
        self, fd: int, job: DestinationJob, holder: DestinationHolder, control: Connection
    ) -> None:
        super().__init__(Line(fd), control, Handover(DESTINATION, _first_state(job)))
        self._job = job
        self._holder = holder
        self._read = 0
        self._peeked = b""

    def begin(self) -> None:
        """Send the promise, unless the source is known to have left and runs its guest on."""
        if self._job.return_path and not self._job.promised:
            self._peeked = self._job.rest + self.line.peek()
            if not self._read_words():
                self.feed(DestinationEvent.LEFT, BEHIND_THE_END)
                return
            if self.line.ended or self.line.broken:
                self.feed(DestinationEvent.LEFT, "the source left before the answer")
                return
        self.feed(DestinationEvent.BEGIN)

    @property
    def stale(self) -> bool:
        """Return whether the channel still holds words that were already read."""
        return bool(self._peeked) or (self.line.ended and not self.handover.over)

    def patience(self) -> float:
        """Return the longest time, in seconds, to wait; no decision depends on it."""
        return STEP

    def look(self) -> None:
        """Read the words that have arrived, then check whether the connection lives."""
        if not self._job.return_path:
            return
        self.line.check()
        self._peeked = self._job.rest + self.line.peek()
        if not self._read_words():
            self.feed(DestinationEvent.MORE, BEHIND_THE_END)
        if self.line.broken:
            self.feed(DestinationEvent.LINK_LOST, f"the connection broke: {self.line.broken}")
        elif self.line.ended and not self.unsent and self.line.acknowledged:
            # The source's system has acknowledged the promise, so the close was seen after it.
            self.feed(DestinationEvent.CLOSED, "the source closed the connection without a word")

    def _read_words(self) -> bool:
        """Feed new words; return whether all bytes are words, or the beginning of one."""
        job = self._job
        while self._read < len(self._peeked):
            rest = self._peeked[self._read :]
            if rest.startswith(job.confirm):
                self._read += len(job.confirm)
                self.feed(DestinationEvent.CONFIRM)
            elif rest.startswith(job.abort):
                self._read += len(job.abort)
                self.feed(DestinationEvent.ABORT, "the source took the guest back")
            else:
                return job.confirm.startswith(rest) or job.abort.startswith(rest)
        return True

    def command(self, command: str) -> None:
        """Feed a command of the coordinator; its death changes nothing."""
        if command == CANCEL:
            self.feed(DestinationEvent.CANCEL, "cancelled")
        elif command == LEAVE:
            self.feed(DestinationEvent.LEAVE, "the source has not said yet whether it gave it up")

    def perform(self, action: DestinationAction) -> None:
        """Perform an action of the state table."""
        if action is DestinationAction.PROMISE and not self._job.promised:
            self.say(shut(0))
            self.report(PROMISED)
        elif action is DestinationAction.REFUSE:
            self.say(shut(1))
        elif action is DestinationAction.SAY_STARTED and self._job.peer is Peer.CONFIRMING:
            self.say(pong(Word.CONFIRM))
        elif action is DestinationAction.START:
            self._start()

    def _start(self) -> None:
        try:
            self._holder.complete(running=self._job.running)
        except GuestError as error:
            self.feed(DestinationEvent.NOT_STARTED, str(error))
        else:
            self.reason = ""
            self.feed(DestinationEvent.STARTED)


def _first_state(job: DestinationJob) -> Destination:
    if not job.return_path:
        return Destination.LOADED_ONE_WAY
    confirming = job.peer is Peer.CONFIRMING
    return Destination.PROMISED if confirming else Destination.PROMISED_STOCK


def hand_in(
    fd: int, job: DestinationJob, holder: DestinationHolder, control: Connection
) -> Outcome[Destination]:
    """Take a whole guest over on the channel `fd`, and close it; report to `control`."""
    return HandingIn(fd, job, holder, control).run()
