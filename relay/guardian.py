"""The process beside a near relay that holds its source's connection, in case the relay dies.

A source whose connection closes takes its guest back. When a near relay is killed, nobody knows
yet whether the destination has the guest, so this process keeps the connection open, asks the far
relay, and closes it only if the destination does not have the guest and never will (law 5).

The relay tells it by messages on a socket: a `Charge` together with the source's connection, or one
byte to let go of it. The end of that socket is the end of the relay.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from ..protocol.wire.link import Fate, Purpose
from ..transport.uri import Uri
from .carrier import reason_of
from .deadline import Deadline
from .greeting import GREETING, EndedError, greet_far
from .local import connected

MAX_MESSAGE = 1 << 16
"""Limit for a message of the relay, in bytes."""
_LOOK_EVERY = 0.2
_RETRY = 1.0
"""Seconds between two attempts to reach the far relay."""


@dataclass(frozen=True)
class Charge:
    """The facts that are needed to find out what became of a session."""

    connect: Uri
    """Address of the far relay."""
    secret: bytes
    session: bytes
    connections: int
    reconnect: float
    """Seconds without the far relay's word after which the user is told."""


def main(number: int) -> None:
    """Hold what the relay at the other end of a socket, this descriptor, says, until it ends."""
    relay = socket.socket(fileno=number)
    charge: Charge | None = None
    source: socket.socket | None = None
    while True:
        data, fds, _, _ = socket.recv_fds(relay, MAX_MESSAGE, 1)
        if not data:
            break
        if source is not None:
            source.close()
        source = socket.socket(fileno=fds[0]) if fds else None
        charge = pickle.loads(data) if fds else None
    if source is not None and charge is not None:
        asyncio.run(Guardian(charge, source).run())


def _say(line: str) -> None:
    """Tell the user, if that is possible: the source is kept whether it is or not."""
    with suppress(OSError):
        print(f"relay: {line}", file=sys.stderr, flush=True)


class Guardian:
    """The keeper of one source's connection, whose relay has ended."""

    def __init__(self, charge: Charge, source: socket.socket) -> None:
        self._charge = charge
        self._source = source
        self._told: set[str] = set()

    async def run(self) -> None:
        """Return once the source may know that its relay has ended, or has closed by itself."""
        _say("the relay has ended in the middle of a migration; asking the far relay who has it")
        asking = asyncio.ensure_future(self._ask())
        leaving = asyncio.ensure_future(self._left())
        _, pending = await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        self._source.close()

    async def _left(self) -> None:
        """Wait until the source has closed its end."""
        poll = select.poll()
        poll.register(self._source, select.POLLRDHUP)
        while not poll.poll(0):
            await asyncio.sleep(_LOOK_EVERY)

    async def _ask(self) -> None:
        """Return when the far relay has said that the destination lacks the guest."""
        begun = time.monotonic()
        while True:
            try:
                await self._ask_once()
            except EndedError as error:
                if error.fate is Fate.LACKS:
                    _say(f"{error}; the source runs on")
                    return
                if error.fate is Fate.HAS:
                    self._tell(f"{error}: quit the source")
                else:
                    self._look_there(str(error))
            except Exception as error:
                # Whatever it is: a source that is let go of could be a second guest.
                if time.monotonic() - begun >= self._charge.reconnect:
                    self._look_there(f"the far relay does not say: {reason_of(error)}")
            await asyncio.sleep(_RETRY)

    async def _ask_once(self) -> None:
        charge = self._charge
        sock = await connected(charge.connect)
        try:
            with Deadline(GREETING):
                await greet_far(
                    sock,
                    charge.secret,
                    charge.session,
                    *(0, charge.connections),
                    Purpose.SETTLE,
                )
        finally:
            sock.close()

    def _look_there(self, why: str) -> None:
        self._tell(
            f"{why}: look at the destination; if it does not run, end this process"
            f" (kill {os.getpid()}), and the source runs on"
        )

    def _tell(self, line: str) -> None:
        """Say a line once."""
        if line not in self._told:
            self._told.add(line)
            _say(line)
