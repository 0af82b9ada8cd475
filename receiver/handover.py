"""Lead the incoming handover for the coordinator; `sender.handover` is the counterpart.

The process that holds the guest promises the source that the guest is whole, and starts it when the
source confirms (`guest.handing_in`). If that process dies, the coordinator asks the source to keep
running the guest. If the coordinator dies, the transport process may continue in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe

from ..guest.base import Guest
from ..guest.errors import MigrationError
from ..guest.handing import Outcome
from ..guest.handing_in import PROMISED, DestinationJob, hand_in
from ..guest.line import Line
from ..guest.watching import LOOK_EVERY, HolderDied, Wishes, watch
from ..protocol.handover import Destination
from ..protocol.return_path import shut
from ..transport.channel import Channel
from ..transport.process import send_message
from .exchange import LetGo, Promised, Released


def lead(
    guest: Guest,
    channel: Channel,
    job: DestinationJob,
    wishes: Wishes,
    *,
    on_look: Callable[[], None],
    on_promise: Callable[[], None],
) -> Outcome[Destination]:
    """Take the whole guest over on the channel, and return how that ended.

    `on_promise` is called once the answer was sent. Raises MigrationError if the guest's process
    died, and HolderSilent if it does not answer.
    """

    def heard(report: str) -> None:
        if report == PROMISED:
            on_promise()

    with guest.begin_handing_in(os.dup(channel.fileno()), job) as connection:
        try:
            outcome: Outcome[Destination] = watch(connection, wishes, on_look, heard)
        except HolderDied:
            if job.return_path:
                _give_back(channel, wishes, on_look)
            raise MigrationError("the guest's process died") from None
    guest.settled(outcome)
    return outcome


def _give_back(channel: Channel, wishes: Wishes, on_look: Callable[[], None]) -> None:
    """Tell the source that the guest never runs here, and wait until the source is gone.

    The source may have given the guest up and sent CONFIRM. A connection that is closed before
    CONFIRM arrives is reset, and a reset can overtake the message to the source.
    """
    line = Line(os.dup(channel.fileno()))
    channel.drop()
    line.write(memoryview(shut(1)))
    while True:
        line.drain()
        line.peek()
        if line.ended or line.broken or wishes.cancel() or wishes.leave():
            break
        line.wait(None, LOOK_EVERY, news=True, room=False)
        on_look()
    line.close()


def let_go(connection: Connection, channel: Channel, command: LetGo) -> None:
    """Leave the channel to the guest's holder, and take over if that dies.

    The transport process calls it. Without a finisher the holder cannot be replaced, and this
    process is done.
    """
    if command.finisher is None:
        channel.drop()
        send_message(connection, Released())
        return
    send_message(connection, Released())
    promised = False
    try:
        while isinstance(connection.recv(), Promised):
            promised = True
    except (EOFError, ConnectionError):
        _take_over(channel, replace(command.job, promised=promised), command.finisher)
    else:
        channel.drop()


class Finisher:
    """A guest whose coordinator died, with a call that completes it from any process."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish

    def complete(self, *, running: bool) -> None:
        """Complete the guest; whether it runs was settled before the promise."""
        del running
        self._finish()


def _take_over(channel: Channel, job: DestinationJob, finisher: Callable[[], None]) -> None:
    """End the handover of a guest whose coordinator died."""
    ours, theirs = Pipe()
    with ours, theirs:
        hand_in(os.dup(channel.fileno()), job, Finisher(finisher), theirs)
    channel.drop()
