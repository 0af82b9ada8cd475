"""Watch a handover for the coordinator, and forward what the user wants."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..transport.process import send_message
from ..transport.shared import wait_readable
from .handing import CANCEL, LEAVE, Outcome

LEAVE_AFTER = 2.0
"""Seconds that a command that must end waits after CANCEL before it sends LEAVE."""
CANCEL_AFTER = 10.0
"""Seconds after CANCEL for which a command that goes on waits before it sends LEAVE, too.

The guest was given up by then, and the other side does not say what became of it.
"""
ANSWER_WITHIN = 1.0
"""Seconds that the guest's process may take to answer LEAVE."""
LOOK_EVERY = 0.1
"""Seconds between two checks of what the user wants."""


@dataclass(frozen=True)
class Wishes:
    """The user's wishes during a handover. `cancel`: the guest is to stay at its source, or the
    handover to end, if that cannot be had any more.

    `leave`: the command is to end now, even if the guest cannot be kept at its source.
    """

    cancel: Callable[[], bool]
    leave: Callable[[], bool]


class HolderDied(Exception):  # noqa: N818 - news, not a fault
    """The process that held the guest died during the handover."""


class HolderSilent(Exception):  # noqa: N818 - news, not a fault
    """The process that holds the guest does not answer (it may be stopped), and we must leave."""


def watch(
    connection: Connection,
    wishes: Wishes,
    on_look: Callable[[], None],
    on_report: Callable[[str], None] = lambda _: None,
) -> Outcome[Any]:
    """Return the outcome of a handover that another process or thread carries out.

    `on_look` is called every 100 ms, `on_report` with each report that precedes the outcome. Raises
    HolderDied, HolderSilent.
    """
    asked: dict[str, float] = {}
    while True:
        _ask(connection, wishes, asked)
        if wishes.leave() and LEAVE in asked and time.monotonic() > asked[LEAVE] + ANSWER_WITHIN:
            raise HolderSilent
        wait_readable([connection.fileno()], LOOK_EVERY)
        on_look()
        while connection.poll():
            try:
                report = connection.recv()
            except (EOFError, OSError):
                raise HolderDied from None
            if isinstance(report, Outcome):
                return report
            on_report(report)


def _ask(connection: Connection, wishes: Wishes, asked: dict[str, float]) -> None:
    """Forward each wish once; send LEAVE only if CANCEL did not end the handover."""
    now = time.monotonic()
    if CANCEL not in asked and (wishes.cancel() or wishes.leave()):
        _pass_on(connection, CANCEL, asked)
    elif CANCEL in asked and LEAVE not in asked:
        patience = LEAVE_AFTER if wishes.leave() else CANCEL_AFTER
        if now > asked[CANCEL] + patience:
            _pass_on(connection, LEAVE, asked)


def _pass_on(connection: Connection, wish: str, asked: dict[str, float]) -> None:
    asked[wish] = time.monotonic()
    try:
        send_message(connection, wish)
    except OSError:
        # The holder has reported its outcome, or died: the next check shows which.
        return
