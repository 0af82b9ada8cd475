"""The outgoing handover, as the coordinator leads it; its mirror image is receiver/handover.py.

The process that holds the guest sends the end of the stream and decides by the answer who has the
guest (`guest.handing_out`). Should that process die, the coordinator goes on in its place: the
guest can never run here again then, so a destination that has it whole is told to start it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Pipe

from ..guest.base import Guest
from ..guest.handing import Outcome
from ..guest.handing_out import ALL_SENT, ANSWER_TIMEOUT, SourceJob, hand_out
from ..guest.watching import HolderDied, HolderSilent, Wishes, watch
from ..protocol.handover import Source
from ..transport.channel import Channel

UNSURE_TIMEOUT = 5.0
"""Seconds for the answer of a destination that may not have got the end of the stream: the guest's
process died while it sent it."""


class DeadHolder:
    """Stands in for a guest whose process died; it cannot run here any more."""

    def commit(self) -> None:
        """Do nothing: a dead guest needs no mark."""

    def resume(self) -> None:
        """Do nothing: a dead guest cannot run."""


@dataclass(frozen=True)
class Handed:
    """How the handover ended. `dead`: the guest's process died here while it was under way.

    `outcome` None: the guest's process was left alone with it.
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
            if not job.return_path:
                return Handed(Outcome(Source.STAYED), dead=True)
            seconds = ANSWER_TIMEOUT if ALL_SENT in reports else UNSURE_TIMEOUT
            return Handed(_lead_for_the_dead(channel, job, wishes, on_look, seconds), dead=True)
    guest.settled(outcome)
    return Handed(outcome)


def _lead_for_the_dead(
    channel: Channel,
    job: SourceJob,
    wishes: Wishes,
    on_look: Callable[[], None],
    seconds: float,
) -> Outcome[Source]:
    """Go on behind the end of the stream. The destination's copy may be the last: never ABORT.

    Nobody can run twice any more, so it does no harm to give up after some seconds.
    """
    deadline = time.monotonic() + seconds
    wishes = replace(wishes, cancel=lambda: wishes.leave() or time.monotonic() > deadline)
    ours, theirs = Pipe()
    rest = replace(job, closing=b"", abort=b"", resume=False)
    fd = os.dup(channel.fileno())
    thread = threading.Thread(target=hand_out, args=(fd, rest, DeadHolder(), theirs), daemon=True)
    thread.start()
    with ours:
        outcome: Outcome[Source] = watch(ours, wishes, on_look)
    return outcome
