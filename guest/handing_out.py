"""The source's side of a handover: send the end of the stream, and read the answer to it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

from ..protocol.errors import StreamError
from ..protocol.handover import SOURCE, Handover, Peer, Source, SourceAction, SourceEvent, Word
from ..protocol.return_path import Pong, ReturnPathReader, Shut
from .handing import CANCEL, LEAVE, ORPHANED, STEP, Outcome, Side
from .line import Line

ANSWER_TIMEOUT = 60.0
"""Seconds without progress after which a source takes the guest back from a destination.

This applies to a destination that waits for CONFIRM. No other timeout decides where a guest runs.
"""
ALL_SENT = "all sent"
"""Report before the Outcome: the channel accepted the whole stream."""


@dataclass(frozen=True)
class SourceJob:
    """The data that a source needs after its last section; bytes as they are on the wire.

    `answers` has bytes of the return path that were read before and are not a whole message yet.
    `resume` says that the guest ran before it was paused to migrate. `confirm` and `abort` are
    PING(CONFIRM) and PING(ABORT).
    """

    closing: bytes
    peer: Peer
    return_path: bool
    resume: bool
    confirm: bytes
    abort: bytes
    answers: bytes = b""


class SourceHolder(Protocol):
    """A guest as its source holds it, paused."""

    def commit(self) -> None:
        """Mark the guest: it never runs here again by itself."""

    def resume(self) -> None:
        """Let the guest run again."""


class HandingOut(Side[Source, SourceEvent, SourceAction]):
    """The source's side, over a duplicate of the channel that this object owns."""

    def __init__(self, fd: int, job: SourceJob, holder: SourceHolder, control: Connection) -> None:
        super().__init__(Line(fd), control, Handover(SOURCE, _first_state(job)))
        self._job = job
        self._holder = holder
        self._closing = True
        self._read = 0
        self._peeked = b""
        self._progress = time.monotonic()

    def begin(self) -> None:
        """Start to send the end of the stream."""
        self.say(self._job.closing)

    @property
    def stale(self) -> bool:
        """Return whether the channel still holds answers that were already read."""
        return bool(self._peeked)

    def patience(self) -> float:
        """Return the longest time to wait in seconds; 0 after too long a silence."""
        if self.handover.state is not Source.HOLDING:
            return STEP
        return min(STEP, max(0.0, self._progress + ANSWER_TIMEOUT - time.monotonic()))

    def write(self) -> None:
        """Write as much as the channel accepts, and report when it accepted the whole stream."""
        before = len(self.unsent)
        super().write()
        if len(self.unsent) < before:
            self._progress = time.monotonic()
        if self._closing and not self.unsent and not self.line.broken:
            self._closing = False
            self.report(ALL_SENT)
            self.feed(SourceEvent.ALL_SENT)

    def look(self) -> None:
        """Read the answers that have arrived, then check whether the connection lives."""
        self.line.check()
        if self._job.return_path:
            self._peeked = self.line.peek()
            try:
                self._read_answers()
            except StreamError as error:
                self.feed(SourceEvent.LINK_LOST, f"the destination's answer is damaged: {error}")
            if self.line.ended:
                done = "confirmed" if self.handover.state is Source.GIVEN else "answered"
                reason = f"the destination closed the connection before it {done}"
                self.feed(SourceEvent.LINK_LOST, f"{reason}; its log says why")
        if self.line.broken:
            self.feed(SourceEvent.LINK_LOST, f"the connection broke: {self.line.broken}")
        if not self.patience():
            reason = f"the destination did not answer for {ANSWER_TIMEOUT:.0f} s"
            self.feed(SourceEvent.TIMEOUT, reason)

    def _read_answers(self) -> None:
        """Feed the new messages. Raises StreamError for anything that is not a message."""
        reader = ReturnPathReader()
        for message in reader.feed(self._job.answers + self._peeked)[self._read :]:
            self._read += 1
            self._progress = time.monotonic()
            if isinstance(message, Shut) and message.status == 0 and self._closing:
                reason = "the destination answered before it had the whole guest"
                self.feed(SourceEvent.SHUT_FAILED, reason)
            elif isinstance(message, Shut) and message.status == 0 and self._left_already:
                reason = "the destination closed the connection before it was asked to start"
                self.feed(SourceEvent.LINK_LOST, f"{reason} the guest; its log says why")
            elif isinstance(message, Shut) and message.status == 0:
                self.feed(SourceEvent.SHUT_OK)
            elif isinstance(message, Shut):
                reason = "the destination could not load the guest; its log says why"
                self.feed(SourceEvent.SHUT_FAILED, reason)
            elif message == Pong(Word.CONFIRM):
                self.feed(SourceEvent.STARTED)
        # Raises StreamError if the bytes after the last whole message are damaged.
        reader.feed(b"")

    @property
    def _left_already(self) -> bool:
        """Return whether the destination has closed the connection, and waits for no word.

        Without CONFIRM, it can never start the guest.
        """
        return self.line.ended and self.handover.state is Source.HOLDING

    def command(self, command: str) -> None:
        """Feed a command of the coordinator, or its death."""
        if command == CANCEL:
            self.feed(SourceEvent.CANCEL, "cancelled")
        elif command == ORPHANED:
            self.feed(SourceEvent.ORPHANED, "the command died")
        elif command == LEAVE:
            self.feed(SourceEvent.LEAVE, "it has not said yet that it started the guest")

    def perform(self, action: SourceAction) -> None:
        """Perform an action of the state table."""
        if action is SourceAction.GIVE_UP:
            self._holder.commit()
        elif action is SourceAction.CONFIRM:
            self.say(self._job.confirm)
        elif action is SourceAction.ABORT:
            self._abort()
        elif action is SourceAction.BREAK:
            self.in_order = False
        elif action is SourceAction.RESUME and self._job.resume:
            self._holder.resume()

    def _abort(self) -> None:
        """Send ABORT after the end of the stream; within the stream, only a reset can say it."""
        if self.unsent:
            self.in_order = False
        else:
            self.say(self._job.abort)


def _first_state(job: SourceJob) -> Source:
    if not job.return_path:
        return Source.HOLDING_ONE_WAY
    return Source.HOLDING if job.peer is Peer.CONFIRMING else Source.HOLDING_STOCK


def hand_out(fd: int, job: SourceJob, holder: SourceHolder, control: Connection) -> Outcome[Source]:
    """Hand a paused guest over on the channel `fd`, and close it; report to `control`."""
    return HandingOut(fd, job, holder, control).run()
