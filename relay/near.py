"""The relay beside the source: it listens for sources, and connects to the far relay."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from functools import partial

from ..protocol.formats.link import LinkError
from ..protocol.wire.link import SESSION_SIZE, Purpose
from ..transport.channel import Listener
from .carrier import Carrier, reason_of
from .channel import Channel
from .deadline import Deadline
from .gate import Gate
from .greeting import GREETING, EndedError, RefusedError, greet_far
from .guard import Guard
from .guardian import Charge
from .local import accepted, connected
from .parameters import RelayParameters
from .release import give_back
from .session import Report, Session
from .sockets import Socket

RETRY_FIRST, RETRY_MOST = 0.1, 2.0
"""Seconds until the first attempt to connect again after a cut, and the most between two."""


class Near:
    """A near relay that passes one migration after another.

    Without a listener, it passes the connections that it is given.
    """

    def __init__(
        self, parameters: RelayParameters, listener: Listener | None, report: Report
    ) -> None:
        self._parameters = parameters
        self._listener = listener
        self._report = report
        self._waiting: deque[Socket] = deque()
        self._arrived = asyncio.Event()
        self._guard = Guard()
        self._guarded: Channel | None = None
        self.session: Session | None = None

    async def run(self) -> None:
        """Pass migrations until cancelled, or one of them. Raises LinkError if that one failed."""
        accepting = asyncio.create_task(self._accept())
        try:
            while True:
                await self._arrived.wait()
                key = os.urandom(SESSION_SIZE)
                hold = partial(self._hold, key)
                session = self.session = Session(self._parameters, self._report, on_stream=hold)
                self._report("a source has connected")
                await self._pass(session, key)
                self.session = None
                if self._parameters.once:
                    if session.error is not None:
                        raise LinkError(session.error)
                    return
                if session.error is not None:
                    self._report(f"the migration failed: {session.error}")
                del session
                await give_back()
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            for sock in self._waiting:
                sock.reset()
            self._guard.close()

    def _hold(self, key: bytes, channel: Channel) -> None:
        """Have a process keep the source's connection if this one is killed."""
        own = self._parameters
        charge = Charge(own.connect_uri, own.secret, key, own.connections, own.reconnect)
        try:
            self._guard.hold(charge, channel.fileno())
        except OSError as error:
            reason = f"there can be no process that keeps the source if this one is killed: {error}"
            channel.broke(reason, failure=True)
        else:
            self._guarded = channel
            channel.on_close = partial(self._let_go, channel)

    def _let_go(self, channel: Channel) -> None:
        if channel is self._guarded:
            self._guarded = None
            channel.shut_down()
            self._guard.drop()

    async def _leave(self, session: Session, *, up: bool) -> None:
        """End a session if it is not over; `up`: whether the link was up to now.

        The guardian informs the far relay, and the source as soon as it is clear who has the guest;
        whoever ends the relay may not know. A source that was kept waiting runs on, as the user was
        told.
        """
        ending, main = session.ending, self._guarded
        waits = main is not None and not main.source_has_left and not ending.held
        if waits and (up or await ending.doubt() is not None):
            self._guarded = None
            self._guard.leave()
        session.fail("the relay was ended")

    def give(self, sock: Socket) -> None:
        """Take a connection that the source has made."""
        self._waiting.append(sock)
        self._arrived.set()

    async def _accept(self) -> None:
        """Accept whatever the source connects."""
        while self._listener is not None:
            self.give(await accepted(self._listener, self._report))

    async def _pass(self, session: Session, key: bytes) -> None:
        count = self._parameters.connections
        tasks = [asyncio.create_task(self._admit(session))]
        tasks += [asyncio.create_task(self._keep(session, key, number)) for number in range(count)]
        try:
            await session.supervise(self._parameters.reconnect)
        finally:
            up = bool(session.carriers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._leave(session, up=up)

    async def _admit(self, session: Session) -> None:
        """Pass what the source connects, until the session ends; the rest is for the next one."""
        while not session.leaving:
            await self._arrived.wait()
            while self._waiting and not session.leaving:
                gate = None if self._parameters.one_way else Gate()
                session.add_channel(self._waiting.popleft(), gate)
            if not self._waiting:
                self._arrived.clear()

    async def _keep(self, session: Session, key: bytes, number: int) -> None:
        """Keep one connection of the link up until the session is over."""
        delay = RETRY_FIRST
        while not session.over.is_set():
            try:
                carrier = await self._connect(session, key, number)
                delay = RETRY_FIRST
                await session.carry(carrier)
            except (EndedError, RefusedError) as error:
                if session.leaving:
                    session.left()
                    return
                if isinstance(error, EndedError):
                    await session.ending.ended_there(error.fate, str(error))
                else:
                    await session.ending.give_up(str(error), refused=True)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_MOST)
            except (OSError, EOFError, LinkError, asyncio.TimeoutError) as error:
                if session.answered or (
                    session.leaving and isinstance(error, ConnectionRefusedError)
                ):
                    # The far end has closed the link, or it has ended.
                    session.left()
                if session.over.is_set():
                    return
                if not session.was_up:
                    session.fail(f"cannot connect to the far relay: {reason_of(error)}")
                    return
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_MOST)

    async def _connect(self, session: Session, key: bytes, number: int) -> Carrier:
        sock = await connected(self._parameters.connect_uri)
        secret, count = self._parameters.secret, self._parameters.connections
        purpose = Purpose.RESUME if session.was_up else Purpose.BEGIN
        try:
            with Deadline(GREETING):
                await greet_far(sock, secret, key, number, count, purpose)
        except BaseException:
            sock.close()
            raise
        return Carrier(sock, session.outbox, session, session.buffers)
