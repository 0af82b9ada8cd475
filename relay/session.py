"""One migration through a pair of relays: its channels, and the connections of the link.

The connections of the link come and go. What one of them had when it broke, and the other end has
not acknowledged, the others or the next one send again. So the channels see a link that rests
for a while, and no byte is lost or arrives twice (law 8).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from ..protocol.formats.link import (
    Bye,
    Closed,
    End,
    LinkError,
    Open,
    Record,
    Reset,
    Taken,
)
from ..transport.compression import parse_compression
from .blocks import BLOCK_SIZE, Arrived, Buffers
from .carrier import Carrier, reason_of
from .channel import Channel, Watch
from .ending import Ending
from .figures import Figures
from .outbox import Outbox
from .pace import Pace
from .parameters import WINDOW, RelayParameters, Side
from .sockets import Socket
from .watch import StreamWatch

MAX_HELD = 8 * WINDOW
"""Limit for what arrived and waits, in bytes, of all channels.

The share of a channel shrinks as others are opened, but it may have been used by then.
"""
MAX_CHANNELS = 512
"""Limit for the channels that are open at once."""
_CHECK = 1.0
"""Seconds between two looks at whether the link is cut, at most."""
LEAVE = 0.1
"""Seconds in which the far end's answer to BYE leaves, before it closes the link."""

Report = Callable[[str], None]
"""Function that shows a line to the user."""

Opener = Callable[[Channel], None]
"""Function that connects a channel, which the other end has opened, to the destination."""


class Session:
    """The channels of one migration and what is under way for them on the link.

    `opener` connects a channel that the other end opens; None on the side where sources connect.
    `on_stream` gets the channel of the migration stream before anything of it leaves.
    """

    def __init__(
        self,
        parameters: RelayParameters,
        report: Report,
        opener: Opener | None = None,
        on_stream: Opener | None = None,
    ) -> None:
        self.figures = Figures()
        self.over = asyncio.Event()
        """Set once the session has ended, in order or not."""
        self.error: str | None = None
        """Why the session ended, if that was not in order."""
        self.buffers = Buffers()
        self.carriers: set[Carrier] = set()
        self.was_up = False
        """True once there was a connection of the link."""
        self.leaving = False
        """True once the near end has said BYE."""
        self.answered = False
        """True once the far end has said so, too: only then the near one may forget the session."""
        self.max_bandwidth = parameters.max_bandwidth
        """Limit for what is sent over the link, in bytes per second; 0: none."""
        self._side = parameters.side
        self._opener = opener
        self._on_stream = on_stream
        self._report = report
        self.pace = Pace()
        """Limits for what waits for the link."""
        self._channels: dict[int, Channel] = {}
        self._next_number = 0
        self._giving_up: asyncio.Future[None] | None = None
        self._finished: dict[int, tuple[Record, ...]] = {}
        """Closed channels, and what the other end has to know of each to close it, too."""
        self.outbox = Outbox(
            parameters, self._channels, self.figures, self.buffers, self.pace, self.notify
        )
        self._since = time.monotonic()
        self._samples = self._side is Side.NEAR and parse_compression(parameters.compress) is None
        self._confirmed = self._side is Side.NEAR and not parameters.one_way
        self._begin_stream()

    def _begin_stream(self) -> None:
        """Be ready for a migration stream; another one may follow on the same connections."""
        who = "the source" if self._side is Side.NEAR else "the near relay"
        self.watch = StreamWatch(self.buffers, self._report, who, samples=self._samples)
        self.ending = Ending(self.watch, self._report, self.fail, self.over)

    # Channels.

    def add_channel(self, sock: Socket, watch: Watch | None) -> Channel:
        """Pass a connection that a source made."""
        channel = self._new_channel(self._next_number)
        self.say(Open(channel.number))
        channel.attach(sock, watch)
        return channel

    def _new_channel(self, number: int) -> Channel:
        if len(self._channels) >= MAX_CHANNELS:
            raise LinkError(f"more than {MAX_CHANNELS} connections are open at once")
        channel = Channel(number, self, self.buffers)
        see, hear = partial(self._see, channel), partial(self._hear, channel)
        if self._side is Side.NEAR:
            channel.on_out, channel.on_write = see, hear
        else:
            channel.on_in, channel.on_read = see, hear
        self._channels[number] = channel
        self._next_number = max(self._next_number, number + 1)
        self.figures.channels += 1
        return channel

    def _see(self, channel: Channel, view: memoryview, buffer: bytearray | None) -> bool:
        """Look at what passes from the source to the destination."""
        main = self.ending.main
        if main is not None and main is not channel and main.source_has_left:
            # A source may begin anew while other connections, of disks, are still open.
            self.watch.close()
            self._begin_stream()
        wanted = self.watch.see(channel.number, view, buffer)
        if self.ending.main is None and channel.number in (self.watch.channel, self.watch.opaque):
            self.ending.main = channel
            if self._on_stream is not None:
                self._on_stream(channel)
        return wanted

    def _hear(self, channel: Channel, view: memoryview) -> None:
        """Look at what the destination answers."""
        if channel is self.ending.main:
            self.ending.hear(view)

    def early_end(self, channel: Channel) -> str | None:
        """Return why the end of what a source sends is none that may pass; None if it may."""
        if not self._confirmed:
            return None
        return self.ending.early_end(channel, up=bool(self.carriers))

    def _channel(self, number: int) -> Channel | None:
        """Return a channel that the other end names, which may open it; None if it is closed."""
        channel = self._channels.get(number)
        if channel is None and number not in self._finished:
            if self._opener is None:
                raise LinkError(f"the far end names connection {number}, which does not exist")
            channel = self._new_channel(number)
            self._opener(channel)
        if channel is not None:
            channel.opened = True
        return channel

    @property
    def share(self) -> int:
        """Return how many bytes one channel may hold unacknowledged.

        Each has a share of its own: one that rests must not hold up another, which it may be
        waiting for.
        """
        return max(WINDOW // max(1, len(self._channels)), BLOCK_SIZE)

    def channel_broke(self, channel: Channel, *, failure: bool) -> None:
        """Report a channel that broke; a failure is that of the session, too."""
        self._report(f"connection {channel.number}: {channel.reason}")
        if failure and self.error is None:
            self.error = channel.reason

    def channel_done(self, channel: Channel) -> None:
        """Forget a channel; the near end's last one ends the session."""
        self._channels.pop(channel.number, None)
        self._finished[channel.number] = channel.last_words
        if not self._channels and self._side is Side.NEAR and not self.leaving:
            self.leaving = True
            self.say(Bye())

    def fail(self, reason: str) -> None:
        """Break all channels and end the session."""
        if not self.over.is_set():
            self.error = reason
            self._end()

    @property
    def all_closed(self) -> bool:
        """Return whether there were channels, and all of them are closed."""
        return bool(self._finished) and not self._channels

    def left(self) -> None:
        """End the session in order: both ends know that all channels are closed."""
        if not self.over.is_set():
            self._end()

    def _end(self) -> None:
        """End the session; channels that are still open are broken."""
        self.over.set()
        self.watch.close()
        for channel in list(self._channels.values()):
            channel.finish()
        self.outbox.close()
        self.notify()

    async def supervise(self, reconnect: float) -> None:
        """Return when the session is over, as it is after a cut of so many seconds."""
        tasks = [
            asyncio.ensure_future(waited)
            for waited in (self.over.wait(), self._check_link(reconnect))
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def _check_link(self, reconnect: float) -> None:
        """End the session if the link is cut for too long."""
        while not self.over.is_set():
            self.watch.look()
            cut = 0.0 if self.carriers else time.monotonic() - self._since
            if not self.carriers and cut >= reconnect:
                if self.all_closed:
                    self._end()
                else:
                    await self._give_up(f"the link was cut for {reconnect:.3g} s")
            await asyncio.sleep(min(_CHECK, max(reconnect - cut, 0.05)))

    def exhausted(self) -> None:
        """Give the migration up, as there is no memory for what its source sends."""
        reason = "this relay cannot go on: there is no memory left"
        self._giving_up = asyncio.ensure_future(self._give_up(reason))

    async def _give_up(self, reason: str) -> None:
        near = self._side is Side.NEAR
        await (self.ending.give_up(reason) if near else self.ending.settle(reason))

    def notify(self) -> None:
        """Wake the connections of the link: there is more to send."""
        for carrier in self.carriers:
            carrier.notify()

    def say(self, record: Record) -> None:
        """Send a record over the link."""
        self.outbox.say(record)

    # What arrives over the link.

    def counted(self, received: int) -> None:
        """Count bytes that arrived over the link."""
        self.figures.received += received

    def arrived_block(self, number: int, block: Arrived) -> None:
        """Hand a block to its channel. Raises LinkError."""
        channel = self._channel(number)
        self.figures.written += block.length
        if channel is not None:
            channel.put(block)
        if sum(channel.incoming.held for channel in self._channels.values()) > MAX_HELD:
            raise LinkError("the other end of the link sends more than was acknowledged")

    def arrived_record(self, record: Record) -> None:
        """Handle a record. Raises LinkError."""
        if isinstance(record, Bye):
            self._part()
        elif isinstance(record, (Open, End, Reset, Taken, Closed)):
            if isinstance(record, Reset):
                self.say(Closed(record.channel))
                if record.channel not in self._channels:
                    self._finished[record.channel] = ()
            channel = self._channel(record.channel)
            if channel is not None:
                self._pass(channel, record)

    def _part(self) -> None:
        """Take leave of the other end, whose channels are all closed."""
        self.answered = self.leaving
        if self._side is Side.FAR and not self.leaving:
            self.leaving = True
            self.say(Bye())
            asyncio.get_running_loop().call_later(LEAVE, self.left)

    @staticmethod
    def _pass(channel: Channel, record: Record) -> None:
        """Hand a record to its channel. Raises LinkError."""
        if isinstance(record, End):
            channel.put_end(record.position)
        elif isinstance(record, Taken):
            channel.taken(record.position)
        elif isinstance(record, Reset):
            channel.broke_there(record.reason)
        elif isinstance(record, Closed):
            channel.finish()

    # Connections of the link.

    async def carry(self, carrier: Carrier) -> None:
        """Use a connection of the link until it breaks. Raises LinkError, OSError, EOFError."""
        if self.was_up and not self.carriers:
            self._report("the link is up again")
        self.was_up, self.ending.held = True, False
        self.carriers.add(carrier)
        self.figures.connections = len(self.carriers)
        self._repeat_state()
        try:
            await carrier.run()
        except (LinkError, OSError, EOFError) as error:
            if len(self.carriers) == 1 and not self.leaving and not self.over.is_set():
                self._report(f"the link is cut: {reason_of(error)}")
            raise
        except (MemoryError, RuntimeError) as error:
            # Neither memory nor another thread is to be had, and what was under way is lost.
            reason = f"this relay cannot go on: {str(error) or 'there is no memory left'}"
            await self._give_up(reason)
            raise LinkError(reason) from None
        finally:
            self.carriers.discard(carrier)
            self._since = time.monotonic()
            self.figures.connections = len(self.carriers)
            self._lose(carrier)

    def _lose(self, carrier: Carrier) -> None:
        """Have everything sent again that a broken connection may have swallowed."""
        if self.over.is_set() or self.leaving:
            return
        self.figures.cuts += 1
        for channel in list(self._channels.values()):
            reason = self.early_end(channel) if channel.outgoing.ended else None
            if reason is not None:
                channel.broke(reason, failure=True)
            self.outbox.repeat(channel.outgoing.lost(carrier))
        self._repeat_state()

    def _repeat_state(self) -> None:
        """Send all records again that the other end may not have."""
        for words in self._finished.values():
            self.outbox.say(*words)
        for channel in self._channels.values():
            if self._side is Side.NEAR and not channel.opened:
                self.outbox.say(Open(channel.number))
            if channel.incoming.taken:
                self.outbox.say(Taken(channel.number, channel.incoming.taken))
            if channel.outgoing.ended:
                self.outbox.say(End(channel.number, channel.outgoing.position))
            if channel.reason is not None:
                self.outbox.say(Reset(channel.number, channel.reason))
        if self.leaving:
            self.outbox.say(Bye())
