"""Send over the link what one relay has: records, and blocks of all channels in turn.

What a broken connection of the link had, and the other end has not acknowledged, goes first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from ..protocol.formats.link import Record, Taken, build_record
from ..transport.compression import LinkMeter, parse_compression
from ..transport.process import processors
from ..transport.rate import RateLimiter
from .blocks import Block, Buffers
from .channel import Channel
from .figures import Figures
from .pace import Pace
from .packing import Made, Packer
from .parameters import RelayParameters

_WORTH = 0.25
"""Part of its limit that a block should have to be compressed while others are under way."""


class Outbox:
    """The records and blocks that wait for a connection of the link.

    `channels`: the open channels by number, which their session keeps. `pace`: the limits for what
    waits, which follow what is sent. `notify` wakes the connections of the link.
    """

    def __init__(
        self,
        parameters: RelayParameters,
        channels: Mapping[int, Channel],
        figures: Figures,
        buffers: Buffers,
        pace: Pace,
        notify: Callable[[], None],
    ) -> None:
        compression = parse_compression(parameters.compress)
        limit = parameters.max_bandwidth
        self._channels = channels
        self._figures = figures
        self.pace = pace
        self._notify = notify
        self._records: deque[Record] = deque()
        self._lost: deque[Block] = deque()
        self._made: dict[Block, Made] = {}
        self._packer = Packer(compression, processors(), buffers, notify)
        self._turn = 0
        self._limiter = RateLimiter(limit or None, time.monotonic)
        self._counts = {"transferred": 0, "busy_ns": 0, "max_bandwidth": limit}
        self._meter = LinkMeter(self._counts, self._counts)

    def say(self, *records: Record) -> None:
        """Send records over the link."""
        self._records.extend(records)
        self._notify()

    def repeat(self, blocks: Iterable[Block]) -> None:
        """Send blocks again that a broken connection may have swallowed."""
        self._lost.extend(blocks)

    def close(self) -> None:
        """End the threads that compress."""
        self._packer.close()

    def next_records(self) -> list[bytes]:
        """Return the records to send now; of several acknowledgements of a channel, the last."""
        last: dict[int, Record] = {}
        found: list[Record] = []
        for record in self._records:
            if isinstance(record, Taken):
                last[record.channel] = record
            else:
                found.append(record)
        self._records.clear()
        built = [build_record(record) for record in (*last.values(), *found)]
        self._figures.sent += sum(map(len, built))
        return built

    def next_block(self) -> Block | None:
        """Return the next block to send: first those that a broken one had."""
        while self._lost:
            block = self._lost.popleft()
            channel = self._channels.get(block.channel)
            if channel is not None and block.end > channel.outgoing.taken:
                self._figures.repeated += block.length
                return block
        made = self._packer.take()
        if made is None:
            self._pack(1 if self._packer.idle else self.pace.block)
            made = self._packer.take()
        if self._packer.level:
            self._pack(int(_WORTH * self.pace.block))
        return None if made is None else self._kept(made)

    def _pack(self, least: int) -> None:
        """Have frames made of what was read, from each channel in turn, while there is room.

        `least`: bytes that a block must have.
        """
        while self._packer.has_room:
            channels = list(self._channels.values())
            for place in range(len(channels)):
                raw = channels[(self._turn + place) % len(channels)].pull(least)
                if raw is not None:
                    self._turn += place + 1
                    self._figures.read += raw.length
                    self._packer.put(raw)
                    break
            else:
                return

    def _kept(self, made: Made) -> Block | None:
        channel = self._channels.get(made.block.channel)
        if channel is None or channel.reason is not None:
            return None
        channel.outgoing.keep(made.block)
        self._made[made.block] = made
        return made.block

    async def may_send(self, size: int) -> None:
        """Wait until the limit of bandwidth lets so many bytes pass."""
        while (delay := self._limiter.delay()) > 0:
            await asyncio.sleep(delay)
        self._limiter.sent(size)

    def sent(self, block: Block, seconds: float) -> None:
        """Record that a block was sent."""
        size = sum(map(len, block.pieces))
        self._figures.sent += size
        self._counts["transferred"] += size
        self._counts["busy_ns"] += int(seconds * 1e9 / max(1, self._figures.connections))
        made = self._made.pop(block, None)
        if made is not None:
            link = self._meter.look()
            self.pace.sent(block.length, size, link, self._figures.connections)
            self._packer.sent(made, link)
            self._figures.level = self._packer.level
