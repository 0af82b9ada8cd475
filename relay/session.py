"""One migration through a pair of relays: its channels, and the connections of the link.

The connections of the link come and go. What one of them had when it broke, and the other end has
not acknowledged, the others or the next one send again. So the channels see a link that stands
still for a while, and no byte is lost or arrives twice (law 8).
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
from .figures import Figures
from .outbox import Outbox
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
_LOOK_THERE = "look there; if it does not run, end this relay, and the source runs on"

Report = Callable[[str], None]
"""Function that shows a line to the user."""

Opener = Callable[[Channel], None]
"""Function that connects a channel, which the other end has opened, to the destination."""


class Session:
    """The channels of one migration and what is under way for them on the link.

    `opener` connects a channel that the other end opens; None on the side where sources connect.
    """

    def __init__(
        self, parameters: RelayParameters, report: Report, opener: Opener | None = None
    ) -> None:
        compress = parse_compression(parameters.compress)
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
        self.held = False
        """True while the source is kept waiting, as the destination may run its guest."""
        self._held_for: set[str] = set()
        self._side = parameters.side
        self._opener = opener
        self._report = report
        self._channels: dict[int, Channel] = {}
        self._next_number = 0
        self._finished: dict[int, tuple[Record, ...]] = {}
        """Closed channels, and what the other end has to know of each to close it, too."""
        self._handed_on = 0
        self.outbox = Outbox(parameters, self._channels, self.figures, self.buffers, self.notify)
        self._since = time.monotonic()
        near = self._side is Side.NEAR
        who = "the source" if near else "the near relay"
        self.watch = StreamWatch(self.buffers, report, who, samples=near and compress is None)

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
        see = partial(self.watch.see, number)
        if self._side is Side.NEAR:
            channel.on_out = see
        else:
            channel.on_in = see
        self._channels[number] = channel
        self._next_number = max(self._next_number, number + 1)
        self.figures.channels += 1
        return channel

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

        Each has a share of its own: one that stands still must not hold up another, which it may be
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
        if channel.number == self.watch.channel:
            self._handed_on = channel.incoming.taken
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
    def outcome(self) -> str:
        """Return in words what the far end has handed on, once the session is over."""
        view = self.watch.view
        if view is None or self.watch.behind or (view.error is not None and not view.ended):
            return "whether the destination got the whole guest is not known"
        if view.eof is not None and self._handed_on >= view.eof:
            return "the destination got the whole guest"
        return "the destination did not get the whole guest"

    async def give_up(self, reason: str, *, refused: bool = False) -> None:
        """Fail, but keep the source waiting if the destination may have its guest (laws 5 and 8).

        A source whose connection breaks takes its guest back, and two of them would run. `refused`:
        the reason is the far relay's word, which says itself what the destination has got.
        """
        doubt = await self._doubt()
        if doubt is None:
            self.fail(reason)
            return
        self.held = True
        if reason not in self._held_for:
            self._held_for.add(reason)
            words = reason if refused else f"{reason}; {doubt}"
            self._report(f"{words}: {_LOOK_THERE}")

    async def _doubt(self) -> str | None:
        """Return in words why the destination may have the guest; None if it cannot have it."""
        watch = self.watch
        number = watch.opaque if watch.channel is None else watch.channel
        channel = None if number is None else self._channels.get(number)
        if channel is None or channel.reason is not None or channel.outgoing.ended:
            return None
        if watch.channel is not None:
            watch.look_ahead(channel.outgoing.open_content)
            while not watch.idle:
                await asyncio.sleep(0.01)
        return watch.doubt(channel.outgoing.left)

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
                    await self.give_up(f"the link was cut for {reconnect:.3g} s")
            await asyncio.sleep(min(_CHECK, max(reconnect - cut, 0.05)))

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
        self.was_up, self.held = True, False
        self.carriers.add(carrier)
        self.figures.connections = len(self.carriers)
        self._repeat_state()
        try:
            await carrier.run()
        except (LinkError, OSError, EOFError) as error:
            if len(self.carriers) == 1 and not self.leaving and not self.over.is_set():
                self._report(f"the link is cut: {reason_of(error)}")
            raise
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
        for channel in self._channels.values():
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
