"""One local connection, and how it is passed through the link in both directions.

Either direction ends by itself, as connections do. A connection that breaks is broken at the other
end of the link, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from ..protocol.formats.link import End, Record, Reset, Taken, reason_of
from .blocks import Arrived, Buffers, Raw
from .incoming import Incoming
from .outgoing import Outgoing
from .pace import Pace
from .sockets import Socket


class Around(Protocol):
    """The interface of a session, as its channels use it."""

    @property
    def share(self) -> int:
        """Return how many bytes one channel may hold unacknowledged."""

    @property
    def pace(self) -> Pace:
        """Return the limits for what waits for the link."""

    def notify(self) -> None:
        """Wake whoever takes blocks and records: there are more."""

    def say(self, record: Record) -> None:
        """Send a record over the link."""

    def exhausted(self) -> None:
        """Give the migration up, as there is no memory left."""

    def channel_broke(self, channel: Channel, *, failure: bool) -> None:
        """Report a channel that broke; `failure`: it cannot have been at the end of its work."""

    def early_end(self, channel: Channel) -> str | None:
        """Return why the end of what a source sends is none that may pass; None if it may."""

    def channel_done(self, channel: Channel) -> None:
        """Forget a channel, which is closed at both ends."""


WORTH = 0.5
"""Part of its limit from which a block leaves at once."""
BULK = 0.002
"""Seconds after one block in which the next one waits until it is larger: each costs the same."""

Ear = Callable[[memoryview], None]
"""Function that sees bytes of the return path before anybody else does."""

Watch = Callable[[memoryview], "str | None"]
"""Function that sees what is read from a local connection before it may leave; nothing at its end.

It returns None to let it pass, an empty string to hold it back until more is there, or the reason
why the connection is refused.
"""


Spy = Callable[[memoryview, "bytearray | None"], bool]
"""Function that sees what passes in order, as a view of a buffer; it returns False for no more."""


class Channel:
    """A local connection with its number on the link."""

    def __init__(self, number: int, around: Around, buffers: Buffers) -> None:
        self.number = number
        self.outgoing = Outgoing(number, buffers, around.pace)
        self.incoming = Incoming()
        self.reason: str | None = None
        """Why the channel broke, in one line; None while it has not."""
        self.opened = False
        """True once the other end has sent something of this channel."""
        self.on_out: Spy | None = None
        """Function that sees all blocks on their way from the local connection to the link."""
        self.on_in: Spy | None = None
        """Function that sees all blocks on their way from the link to the local connection."""
        self.on_read: Ear | None = None
        """Function that sees what was read from the local connection, at once."""
        self.on_write: Ear | None = None
        """Function that sees what is about to be written to the local connection."""
        self.on_close: Callable[[], None] | None = None
        """Function that is called when the local connection is about to be closed."""
        self._around = around
        self._buffers = buffers
        self._socket: Socket | None = None
        self._reads = False
        self._held_back = True
        self._watch: Watch | None = None
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._done = False
        self._loop = asyncio.get_running_loop()
        self._pulled = 0.0
        self._later: asyncio.TimerHandle | None = None

    def attach(self, sock: Socket, watch: Watch | None = None) -> None:
        """Begin to read and to write the local connection."""
        if self.reason is not None:
            sock.reset()
            return
        self._socket = sock
        self._watch, self._held_back = watch, watch is not None
        self._task = asyncio.create_task(self._hand_on())
        self.read_on()

    def fileno(self) -> int:
        """Return the descriptor of the local connection."""
        assert self._socket is not None
        return self._socket.fileno()

    def shut_down(self) -> None:
        """Close both directions of the local connection for all processes that have it."""
        assert self._socket is not None
        self._socket.shut_down()

    @property
    def source_has_left(self) -> bool:
        """Return whether nothing more arrives from the source, in order or not."""
        return self.reason is not None or self.outgoing.ended or self.incoming.at_end

    @property
    def last_words(self) -> tuple[Record, ...]:
        """Return what the other end has to know of a channel that ended in order."""
        if self.reason is not None or not self.outgoing.ended:
            return ()
        taken = Taken(self.number, self.incoming.taken)
        return (taken, End(self.number, self.outgoing.position))

    # From the local connection to the link.

    def read_on(self) -> None:
        """Go on reading the local connection if it was paused and there is room now."""
        if self._socket is None or self.outgoing.ended or self.reason is not None or self._reads:
            return
        if self.outgoing.held < self._around.share and not self.outgoing.full:
            self._reads = True
            self._socket.on_readable(self._readable)

    def _pause(self) -> None:
        if self._reads and self._socket is not None:
            self._reads = False
            self._socket.on_readable(None)

    def _readable(self) -> None:
        """Read what is there into the open block."""
        assert self._socket is not None
        started = time.perf_counter()
        if self.outgoing.full:
            # The limit of a block has shrunk meanwhile; to read nothing would look like an end.
            self._pause()
            return
        try:
            view = self.outgoing.room()
            count = self._socket.recv_now(view)
        except MemoryError:
            self._pause()
            self._around.exhausted()
            return
        except BlockingIOError:
            return
        except OSError as error:
            self.broke(f"the local connection broke: {error.strerror}")
            return
        if count:
            self.outgoing.filled(count, time.perf_counter() - started)
            if self.on_read is not None:
                self.on_read(view[:count])
        self._look(view[:count])
        if not count and self.reason is None:
            self._ended()
        if self.outgoing.full or self.outgoing.held >= self._around.share:
            self._pause()
        if not self._grows():
            self._around.notify()

    def _ended(self) -> None:
        """Pass on that the local connection has ended this direction in order."""
        refusal = self._around.early_end(self)
        if refusal is not None:
            self.broke(refusal, failure=True)
            return
        self.outgoing.ended = True
        self._pause()
        self._around.say(End(self.number, self.outgoing.position))

    def _look(self, view: memoryview) -> None:
        """Have the watch see what was read, until it lets the connection pass."""
        if self._watch is None:
            return
        refusal = self._watch(view)
        if refusal is None:
            self._watch, self._held_back = None, False
        elif refusal:
            self.broke(refusal, failure=True)

    def pull(self, least: int) -> Raw | None:
        """Take the open block if it has at least `least` bytes and may leave."""
        if self._held_back or self._grows():
            return None
        raw = self.outgoing.pull(least)
        if raw is not None:
            if self.on_out is not None and not self.on_out(raw.content, raw.buffer):
                self.on_out = None
            self._pulled = self._loop.time()
            self.read_on()
        return raw

    def _grows(self) -> bool:
        """Return whether more is likely to arrive soon, so that the open block is worth a wait."""
        waiting = self.outgoing.waiting
        if not waiting or waiting >= WORTH * self._around.pace.block or self.outgoing.ended:
            return False
        left = self._pulled + BULK - self._loop.time()
        if left <= 0:
            return False
        if self._later is None:
            self._later = self._loop.call_later(left, self._grown)
        return True

    def _grown(self) -> None:
        self._later = None
        self._around.notify()

    # From the link to the local connection.

    def put(self, block: Arrived) -> None:
        """Take a block that arrived. Raises LinkError."""
        if self.reason is None and self.incoming.put(block):
            self._arrived.set()

    def put_end(self, position: int) -> None:
        """Record that the other direction ends at `position`. Raises LinkError."""
        self.incoming.put_end(position)
        self._arrived.set()

    def taken(self, position: int) -> None:
        """Record that the other end has handed on everything before `position`."""
        self.outgoing.acknowledge(position)
        self.read_on()
        self._check_done()

    async def _hand_on(self) -> None:
        """Write what arrives to the local connection, in order, and acknowledge it."""
        assert self._socket is not None
        try:
            while not self.incoming.done:
                block = self.incoming.next()
                if block is not None:
                    if self.on_in is not None and not self.on_in(block.content, block.buffer):
                        self.on_in = None
                    if self.on_write is not None:
                        self.on_write(block.content)
                    await self._socket.send([block.content])
                    self._taken(block)
                elif self.incoming.at_end:
                    self._socket.end_sending()
                    self.incoming.taken = self.incoming.position + 1
                    self._around.say(Taken(self.number, self.incoming.taken))
                    self._check_done()
                else:
                    self._arrived.clear()
                    await self._arrived.wait()
        except OSError as error:
            self.broke(f"the local connection broke: {error.strerror}")

    def stop_handing_on(self) -> None:
        """End the local connection's input behind what is on its way there, whatever follows."""
        self.incoming.end_here()
        self._arrived.set()

    def _taken(self, block: Arrived) -> None:
        if block.buffer is not None:
            self._buffers.give(block.buffer)
        self.incoming.taken = self.incoming.position
        self._around.say(Taken(self.number, self.incoming.taken))

    # Ends.

    def broke(self, reason: str, *, failure: bool = False) -> None:
        """Break the local connection, and have the other end of the link do so, too.

        `failure`: the connection cannot have been at the end of its work.
        """
        if self._break(reason, failure):
            self._around.say(Reset(self.number, self.reason or ""))

    def broke_there(self, reason: str) -> None:
        """Break the local connection because the other end of the link did."""
        self._break(f"broken at the other end of the link: {reason}", failure=False)
        self.finish()

    def _break(self, reason: str, failure: bool) -> bool:
        """Break the local connection; return False if that was done before."""
        if self.reason is not None or self._done:
            return False
        self.reason = reason_of(reason)
        self._close(reset=True)
        self.outgoing.drop()
        self._around.channel_broke(self, failure=failure)
        return True

    def finish(self) -> None:
        """Close the local connection: the other end of the link has nothing more to do with it."""
        if not self._done:
            self._done = True
            self._close(reset=not self.incoming.done)
            self._around.channel_done(self)

    def _check_done(self) -> None:
        if self.outgoing.done and self.incoming.done:
            self.finish()

    def _close(self, *, reset: bool) -> None:
        self._pause()
        if self._later is not None:
            self._later.cancel()
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if self._socket is not None and not self._socket.closed:
            if self.on_close is not None:
                self.on_close()
            if reset:
                self._socket.reset()
            else:
                self._socket.close()
