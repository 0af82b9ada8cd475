"""The relay beside the destination: it listens for the near relay, and connects to QEMU."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ..protocol.formats.link import Hello, LinkError, Welcome, build_record
from ..protocol.wire.link import Fate, Purpose
from ..transport.channel import Listener
from .carrier import Carrier
from .channel import Channel
from .deadline import Deadline
from .greeting import GREETING, greet_near, refuse, tell
from .local import accepted, connected
from .parameters import RelayParameters
from .release import give_back
from .session import Report, Session
from .sockets import Socket

MOST_ENDED = 64
"""Limit for the failed migrations whose outcome is remembered."""
MAX_STRANGERS = 16
"""Limit for connections that have not proved who they are; with one more, the oldest ends."""


_NEVER_SEEN = Fate.UNKNOWN, "it does not know this migration"


class Far:
    """A far relay that passes one migration after another."""

    def __init__(self, parameters: RelayParameters, listener: Listener, report: Report) -> None:
        self._parameters = parameters
        self._listener = listener
        self._report = report
        self._key = b""
        self._links: dict[int, asyncio.Task[None]] = {}
        self._strangers: dict[asyncio.Task[None], None] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._begun = asyncio.Event()
        self._idle = asyncio.Event()
        self._ended: dict[bytes, tuple[Fate, str]] = {}
        self.session: Session | None = None

    async def run(self) -> None:
        """Pass migrations until cancelled, or one of them. Raises LinkError if that one failed."""
        admitting = asyncio.create_task(self._admit())
        try:
            while True:
                await self._begun.wait()
                assert self.session is not None
                session = self.session
                try:
                    await session.supervise(self._parameters.reconnect)
                finally:
                    session.fail("the relay was ended")
                    if session.error is not None:
                        self._remember(session)
                    await self._leave()
                if self._parameters.once:
                    if session.error is not None:
                        raise LinkError(session.error)
                    return
                if session.error is not None:
                    self._report(f"the migration failed: {session.error}")
                del session
                await give_back()
        finally:
            tasks = [admitting, *self._strangers, *self._connecting]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _remember(self, session: Session) -> None:
        """Keep what became of a migration, for a near relay that returns too late."""
        words = f"the migration has ended there: {session.error}"
        self._ended[self._key] = session.ending.fate, words
        while len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]

    async def _leave(self) -> None:
        """Close the link of a session that is over, and be ready for the next one."""
        links, self._links = list(self._links.values()), {}
        for task in links:
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        self.session = None
        self._begun.clear()
        self._idle.set()

    async def _admit(self) -> None:
        """Accept whoever connects, and find out who it is."""
        while True:
            sock = await accepted(self._listener, self._report)
            if len(self._strangers) >= MAX_STRANGERS:
                next(iter(self._strangers)).cancel()
            task = asyncio.create_task(self._greet(sock))
            self._strangers[task] = None
            task.add_done_callback(lambda done: self._strangers.pop(done, None))
            # It begins now: a task that is cancelled before it begins closes nothing.
            await asyncio.sleep(0)

    async def _greet(self, sock: Socket) -> None:
        try:
            with Deadline(GREETING):
                hello, answer = await greet_near(sock, self._parameters.secret)
            await self._take_in(sock, hello, answer)
        except (OSError, EOFError, LinkError, asyncio.TimeoutError) as error:
            sock.close()
            if isinstance(error, LinkError):
                self._report(f"a connection was refused: {error}")
        except BaseException:
            sock.close()
            raise

    async def _take_in(self, sock: Socket, hello: Hello, answer: Welcome) -> None:
        """Make a connection part of its session, which it may begin. Raises OSError."""
        known = self._knows(hello)
        if known and self.session is not None:
            if hello.purpose == Purpose.SETTLE:
                await self.session.ending.settle("the near relay has ended")
            if self.session is not None and self.session.ending.settling:
                await self._idle.wait()
            known = self._knows(hello)
        if hello.purpose != Purpose.BEGIN and not known:
            # A new connection to the destination would lack what the old one had.
            await tell(sock, answer, *self._ended.get(hello.session, _NEVER_SEEN))
            return
        if self.session is not None and not known and self._may_replace():
            if self.session.all_closed:
                self.session.left()
            else:
                await self.session.ending.settle("another near relay has connected")
            await self._idle.wait()
        if self.session is None:
            self.session = Session(self._parameters, self._report, self._open)
            self._key = hello.session
            self._idle.clear()
            self._begun.set()
            self._report("a near relay has connected")
        elif not known:
            await refuse(sock, "it serves another migration already")
            return
        before = self._links.pop(hello.number, None)
        if before is not None:
            # The near relay knows that this one is cut, and this end does not yet.
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        await sock.send([build_record(answer)])
        task = asyncio.create_task(self._carry(self.session, sock))
        # A task that is cancelled before it begins closes nothing.
        task.add_done_callback(lambda _: sock.close())
        self._links[hello.number] = task

    def _knows(self, hello: Hello) -> bool:
        return self.session is not None and self._key == hello.session

    def _may_replace(self) -> bool:
        """Return whether another session may begin: this one has no link, and a secret counts.

        A near relay that was killed does not return. Without a secret, a stranger could end a
        migration whose link is cut.
        """
        return bool(self._parameters.secret) and not self._links_live()

    def _links_live(self) -> bool:
        return any(not task.done() for task in self._links.values())

    async def _carry(self, session: Session, sock: Socket) -> None:
        # The session reports what happens to its link.
        with suppress(OSError, EOFError, LinkError):
            await session.carry(Carrier(sock, session.outbox, session, session.buffers))

    def _open(self, channel: Channel) -> None:
        """Connect a channel to the destination."""
        task = asyncio.create_task(self._connect(channel))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, channel: Channel) -> None:
        uri = self._parameters.connect_uri
        try:
            channel.attach(await connected(uri))
        except (OSError, asyncio.TimeoutError) as error:
            reason = getattr(error, "strerror", None) or "no answer"
            channel.broke(f"cannot connect to the destination at {uri}: {reason}", failure=True)
