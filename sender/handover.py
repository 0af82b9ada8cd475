"""Lead the outgoing handover for the coordinator; `receiver.handover` is the counterpart.

Before the guest is paused, the destination is asked whether its answers arrive (`say_hello`).

The process that holds the guest sends the end of the stream and decides by the answer who has the
guest (`guest.handing_out`). If that process dies, the coordinator continues in its place: the guest
can then never run here again, so a destination that has the whole guest is ordered to start it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Pipe

from ..guest.base import Guest
from ..guest.errors import MigrationCancelledError, MigrationError
from ..guest.handing import Outcome
from ..guest.handing_out import (
    ALL_SENT,
    ANSWER_TIMEOUT,
    SourceHolder,
    SourceJob,
    hand_out,
)
from ..guest.watching import HolderDied, HolderSilent, Wishes, watch
from ..protocol.handover import Peer, Source
from ..transport.channel import Channel
from ..transport.crew import SilenceError
from .errors import UnconfirmedError
from .processes import Processes

HELLO_TIMEOUT = 60.0
"""Seconds that the destination may take to answer a PING before the guest is paused."""
HELLO_IS_QUICK = 0.05
"""Longest time, in seconds, of an answer after which no further round is made."""

UNSURE_TIMEOUT = 5.0
"""Seconds to wait for an answer if the guest's process died while it sent the end of the stream.

The destination may not have received all of it.
"""
_HANDED_BY_DEAD = "the process that handed the guest over died"


@dataclass(frozen=True)
class Hello:
    """The destination's answer to HELLO; `slow` if it took a noticeable time to arrive."""

    peer: Peer
    slow: bool


def say_hello(processes: Processes) -> Hello:
    """Make sure that the destination's answers arrive, before the guest is paused.

    Raises MigrationError if it does not answer within HELLO_TIMEOUT.
    """
    asked = time.monotonic()
    try:
        peer = processes.greet(HELLO_TIMEOUT)
    except SilenceError:
        raise MigrationError(
            f"the destination did not answer a PING for {HELLO_TIMEOUT:.0f} s; if its answers"
            " cannot arrive, say --no-return-path"
        ) from None
    return Hello(peer, time.monotonic() > asked + HELLO_IS_QUICK)


class DeadHolder:
    """A stand-in for a guest whose process died; it cannot run here any more."""

    def commit(self) -> None:
        """Do nothing: a dead guest needs no mark."""

    def resume(self) -> None:
        """Do nothing: a dead guest cannot run."""


@dataclass(frozen=True)
class Handed:
    """The result of a handover. `dead` says that the guest's process died here during it.

    `outcome` is None if the guest's process was left to finish the handover alone.
    """

    outcome: Outcome[Source] | None
    dead: bool = False


def lead(
    guest: Guest, channel: Channel, job: SourceJob, wishes: Wishes, on_look: Callable[[], None]
) -> Handed:
    """Hand the paused guest over on the channel, and return how that ended."""
    reports: list[str] = []
    connection = guest.begin_handing_out(os.dup(channel.fileno()), job)
    with connection:
        try:
            outcome: Outcome[Source] = watch(connection, wishes, on_look, reports.append)
        except HolderSilent:
            return Handed(None)
        except HolderDied:
            holder = guest.successor()
            if holder is not None:
                return _lead_on(
                    channel, job, holder, guest, wishes, on_look, all_sent=ALL_SENT in reports
                )
            if not job.return_path:
                return Handed(Outcome(Source.STAYED), dead=True)
            seconds = ANSWER_TIMEOUT if ALL_SENT in reports else UNSURE_TIMEOUT
            return Handed(_lead_for_the_dead(channel, job, wishes, on_look, seconds), dead=True)
    guest.settled(outcome)
    return Handed(outcome)


def _lead_on(
    channel: Channel,
    job: SourceJob,
    holder: SourceHolder,
    guest: Guest,
    wishes: Wishes,
    on_look: Callable[[], None],
    *,
    all_sent: bool,
) -> Handed:
    """Continue in place of a dead process whose guest lives on, held by `holder`.

    `all_sent`: that process has sent the whole stream.
    """
    if guest.running:
        # It decided so, and nobody may be asked to start the guest any more.
        return Handed(Outcome(Source.STAYED, _HANDED_BY_DEAD))
    if not job.return_path and not all_sent:
        channel.abort()
        if job.resume:
            holder.resume()
        return Handed(Outcome(Source.STAYED, _HANDED_BY_DEAD))
    if not all_sent:
        deadline, cancel = time.monotonic() + UNSURE_TIMEOUT, wishes.cancel
        wishes = replace(wishes, cancel=lambda: cancel() or time.monotonic() > deadline)
    outcome = _lead_rest(channel, replace(job, closing=b""), holder, wishes, on_look)
    guest.settled(outcome)
    return Handed(outcome)


def _lead_for_the_dead(
    channel: Channel,
    job: SourceJob,
    wishes: Wishes,
    on_look: Callable[[], None],
    seconds: float,
) -> Outcome[Source]:
    """Continue after the end of the stream in place of the dead process, without sending ABORT.

    The destination's copy may be the last one. The guest cannot run twice any more, so it is safe
    to give up after `seconds`.
    """
    deadline = time.monotonic() + seconds
    wishes = replace(wishes, cancel=lambda: wishes.leave() or time.monotonic() > deadline)
    rest = replace(job, closing=b"", abort=b"", resume=False)
    return _lead_rest(channel, rest, DeadHolder(), wishes, on_look)


def _lead_rest(
    channel: Channel,
    rest: SourceJob,
    holder: SourceHolder,
    wishes: Wishes,
    on_look: Callable[[], None],
) -> Outcome[Source]:
    """Hand the guest over in a thread of this process."""
    ours, theirs = Pipe()
    fd = os.dup(channel.fileno())
    thread = threading.Thread(target=hand_out, args=(fd, rest, holder, theirs), daemon=True)
    thread.start()
    with ours:
        outcome: Outcome[Source] = watch(ours, wishes, on_look)
    return outcome


def failure(handed: Handed, *, cancelled: bool) -> MigrationError | None:
    """Return the error that describes the outcome, or None if the guest has left.

    `cancelled`: the user asked for that.
    """
    outcome = handed.outcome
    if outcome is None:
        return UnconfirmedError(
            "the guest's process does not answer and is left alone; it finds out by itself"
            " whether the destination has the guest, and runs it only if not"
        )
    if outcome.state is Source.GONE:
        return None
    if outcome.state is Source.UNCONFIRMED:
        return UnconfirmedError(
            "the destination has the whole guest, but did not confirm that it runs"
            f" ({outcome.reason}); look there: vmferry receive --resume starts a kept guest"
        )
    if handed.dead:
        return MigrationError(
            "the guest's process died while it was handed over; if the destination says that it"
            " keeps the guest, vmferry receive --resume starts it there"
        )
    if cancelled and outcome.reason == "cancelled":
        return MigrationCancelledError("cancelled")
    return MigrationError(outcome.reason)
