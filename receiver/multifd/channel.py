"""Run the process of one multifd channel: read its packets, and put their pages into guest memory.

Pages that are not compressed go straight to their places: where they are new, by a pipe into the
file that the memory is, otherwise together with the head of the next packet into mapped memory, so
that a packet takes few system calls. Nothing is written before the packet's head
was checked: block, offsets, counts and sizes.
"""

from __future__ import annotations

import errno
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ...guest.errors import GuestError
from ...guest.parts import RamBlock
from ...protocol import events
from ...protocol.errors import StreamError
from ...protocol.reading.multifd_reader import ChannelReader, Packet
from ...protocol.wire import multifd
from ...protocol.wire.marks import PAGE_SIZES
from ...protocol.wire.multifd import Compression
from ...transport.channel import Channel, ChannelError
from ...transport.counters import Counters
from ...transport.crew import reporting
from ...transport.pieces import drop_front
from ...transport.process import receive_channel, send_message
from ...transport.shared import Readiness, SharedFd
from ...transport.splice import Splice
from ..worker import MapBlocks
from .memory import Memory
from .sync import ChannelSteps, Signals

MAX_PIECES = 1024
"""Largest number of buffers that one system call fills (IOV_MAX of Linux)."""


@dataclass(frozen=True)
class ChannelSetup:
    """The setup of a channel's process; `number` is the one that the channel's greeting gives."""

    number: int
    signals: Signals
    go: SharedFd
    counters: Counters


class ChannelInput:
    """The reader of one channel, from its greeting to its end.

    `blocks` are those that the main channel has listed.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Channel,
        setup: ChannelSetup,
        blocks: tuple[RamBlock, ...],
    ) -> None:
        self._channel = channel
        self._command_fd = connection.fileno()
        self._counters = setup.counters
        self._steps = ChannelSteps(connection, setup.signals, setup.go, setup.counters)
        self._reader = ChannelReader()
        self._arrived = Readiness(channel.fileno(), self._command_fd, setup.signals.finish.fileno())
        listed = tuple(events.RamBlock(block.name, block.length) for block in blocks)
        total = sum(block.length for block in blocks)
        self._reader.list_blocks(events.RamBlocks(0, total, listed, _page_size(blocks)))
        self._memory = Memory(blocks)
        self._head = memoryview(bytearray(self._reader.wanted))
        self._used = 0
        self._payload = memoryview(b"")
        self._pipe = Splice()
        self._pages_behind_sync = False

    def run(self) -> None:
        """Read the greeting, then take packets until the main channel has ended.

        Raises StreamError, ChannelError or GuestError, and EOFError when the coordinator is gone.
        """
        with closing(self._pipe):
            self._run()

    def _run(self) -> None:
        if not self._read_head():
            raise self._reader.error("the channel ends within its greeting")
        self._reader.greet(self._head)
        self._head, self._used = memoryview(bytearray(self._reader.wanted)), 0
        while self._read_head():
            self._used = 0
            self._take(self._reader.read_head(self._head))
        if not self._steps.finished:
            # The source, which may have sent everything, has closed the channel.
            self._steps.end()
        if self._pages_behind_sync:
            raise self._late("pages")
        self._steps.drained()

    def _take(self, packet: Packet) -> None:
        pages = len(packet.normal) + len(packet.zero)
        if pages and self._steps.finished:
            raise self._late("pages")
        if len(packet.zero):
            self._memory.clear(packet.block_index, packet.zero)
        if packet.payload_size:
            self._take_payload(packet)
        self._counters.add("normal", len(packet.normal))
        self._counters.add("duplicate", len(packet.zero))
        self._pages_behind_sync |= bool(pages)
        if packet.sync:
            self._pages_behind_sync = False
            if not self._steps.pass_sync():
                raise self._late("a sync point")

    def _take_payload(self, packet: Packet) -> None:
        self._counters.set("compression", packet.compression + 1)
        if packet.compression == Compression.NONE:
            if not self._splice(packet):
                self._read_payload(self._memory.places(packet.block_index, packet.normal))
            self._reader.passed()
            return
        if not self._payload:
            self._payload = memoryview(bytearray(multifd.MAX_PAYLOAD))
        payload = self._payload[: packet.payload_size]
        self._read_payload([payload])
        self._memory.put(packet.block_index, packet.normal, self._reader.pages(payload))

    def _splice(self, packet: Packet) -> bool:
        """Move the payload to the block's file; return False if some of its pages exist already."""
        index, taken = packet.block_index, 0
        found = self._memory.in_file(index, packet.normal)
        for run in found:
            left = run.size
            while left:
                count = self._take_into_pipe(left)
                taken += count
                if not self._put(index, run.fd, run.place + run.size - left):
                    self._read_rest(packet, taken - self._pipe.held)
                    return True
                left -= count
        return bool(found)

    def _put(self, index: int, fd: int, place: int) -> bool:
        """Write what is in the pipe to the file of a block; return False if it takes no writes.

        Raises GuestError if there is no memory for a page.
        """
        try:
            self._pipe.put(fd, place)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise self._memory.none_left(index, error) from error
            self._memory.only_map(index)
            return False
        return True

    def _take_into_pipe(self, most: int) -> int:
        """Take bytes of a payload into the pipe, and return how many."""
        self._wait(until_finish=False)
        count = self._channel.splice(self._pipe, most)
        if not count:
            raise self._cut()
        self._counters.add("bytes", count)
        return count

    def _read_rest(self, packet: Packet, done: int) -> None:
        """Put the payload into mapped memory: what is in the pipe, behind `done` bytes, and all
        that follows.
        """
        pieces = self._memory.places(packet.block_index, packet.normal)
        drop_front(pieces, done)
        drop_front(pieces, self._pipe.read_into(pieces))
        self._read_payload(pieces)

    def _read_head(self) -> bool:
        """Read the rest of a head; return False if the channel, or the main one, ends before it."""
        while self._used < len(self._head):
            count = self._receive([self._head[self._used :]], until_finish=True)
            if not count and not self._used:
                return False
            if not count:
                raise self._cut()
            self._used += count
        return True

    def _read_payload(self, places: list[memoryview]) -> None:
        """Fill these places, and as much of the next head as has arrived."""
        left = sum(map(len, places))
        pieces = [*places, self._head]
        while left > 0:
            count = self._receive(pieces, until_finish=False)
            if not count:
                raise self._cut()
            left -= count
            drop_front(pieces, count)
        self._used = -left

    def _receive(self, pieces: list[memoryview], *, until_finish: bool) -> int:
        """Return how many bytes were received into the pieces in turn.

        Return 0 at the end of the channel and, with `until_finish`, if nothing more has arrived
        when the main channel has ended.
        """
        if not self._wait(until_finish=until_finish):
            return 0
        count = self._channel.recv_into(*pieces[:MAX_PIECES])
        self._counters.add("bytes", count)
        return count

    def _wait(self, *, until_finish: bool) -> bool:
        """Wait until something has arrived, or the channel has ended; return whether it has.

        Return False, with `until_finish`, if the main channel ends before.
        """
        ready = self._arrived.ready()
        if self._command_fd in ready:
            raise EOFError
        if self._channel.fileno() in ready:
            return True
        if until_finish:
            return False
        raise self._late("pages")

    def _late(self, what: str) -> StreamError:
        return self._reader.error(f"{what} behind the last sync point of the main channel")

    def _cut(self) -> StreamError:
        return self._reader.error("the channel ends within a packet")


def _page_size(blocks: tuple[RamBlock, ...]) -> int:
    return blocks[0].page_size if blocks else PAGE_SIZES[0]


def run_channel(connection: Connection, setup: ChannelSetup) -> None:
    """Take the channel, map RAM and receive until the main channel has ended.

    Raises EOFError when the coordinator is gone.
    """
    channel = receive_channel(connection)
    whole = False
    try:
        with (
            reporting(connection, StreamError, GuestError),
            reporting(connection, ChannelError, prefix=f"multifd channel {setup.number}: "),
        ):
            # Not before: until then a command may arrive, and behind that none but the end does.
            command: MapBlocks = connection.recv()
            taking = ChannelInput(connection, channel, setup, command.receive(connection))
            send_message(connection, "ready")
            taking.run()
            whole = True
        # The source may wait for the answer on the main channel, and keeps this one open till then.
        connection.recv()
    finally:
        (channel.drop if whole else channel.abort)()
