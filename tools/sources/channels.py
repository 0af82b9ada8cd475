"""Merges the channels of a captured multifd migration: their pages are inserted into the events of
the main channel, at the sync points where they belong.

Only the order of the intervals between two sync points matters. Within one interval a source sends
each page once. QEMU 7.2 sometimes sends it twice, but if the guest wrote to the page in between, it
is sent again after the sync point. Packets of one interval are taken in the order of their packet
numbers, which rise over all channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, cast

from ...protocol import events
from ...protocol.errors import StreamError
from ...protocol.reading.multifd_reader import ChannelReader, Greeting, Packet
from ...protocol.wire import multifd
from ..console.failure import ChannelError
from .channel_count import ChannelCount
from .compressed import format_of
from .containers import MAX_LAYERS
from .save_image import HEAD
from .source import Source, fill, give_back, sought_or_source
from .stream_events import Found


class _Channel:
    """One multifd channel, which reads each packet only when it is asked for."""

    def __init__(self, file: str, stream: BinaryIO) -> None:
        self.file = file
        self._stream = stream
        self._reader = ChannelReader()
        self._next: Packet | None = None
        self._head = memoryview(b"")
        self._payload = memoryview(bytearray(multifd.MAX_PAYLOAD))
        self.highest = -1
        """The highest packet number that was read; -1 before the first packet."""
        greeting = self._greet()
        self.uuid = greeting.uuid
        self.count = ChannelCount(greeting.channel, file)

    def list_blocks(self, listed: events.RamBlocks) -> None:
        """Set the list of RAM blocks; it is required before the first packet is read."""
        self._reader.list_blocks(listed)
        self._head = memoryview(bytearray(self._reader.wanted))

    @property
    def number(self) -> int:
        """Return the number of the next packet, or 1 << 64 at the end of the channel."""
        packet = self.peek()
        return 1 << 64 if packet is None else packet.number

    def peek(self) -> Packet | None:
        """Return the head of the next packet, or None at the end of the channel."""
        if self._next is None:
            data = self._read(self._head)
            if data:
                with self._named():
                    self._next = self._reader.read_head(data)
        return self._next

    def fail(self, message: str) -> ChannelError:
        """Return a ChannelError that names this channel, its file and the current offset."""
        section = f"multifd channel {self.count.channel}"
        error = StreamError(message, offset=self._reader.offset, section=section)
        return ChannelError(self.file, error)

    def take(self, packet: Packet) -> Iterator[events.MultifdRun]:
        """Yield the pages of the packet that `peek` returned; their data is valid until the next
        read.
        """
        self._next = None
        yield from self._zero(packet)
        if packet.payload_size:
            payload = self._read(self._payload[: packet.payload_size])
            if not payload:
                raise self.fail("the channel ends within a packet")
            yield self._plain(packet, payload)
        count, compression = self.count, self._reader.compression
        self.highest = max(self.highest, packet.number)
        count.packets += 1
        count.syncs += packet.sync
        count.plain += len(packet.normal)
        count.zero += len(packet.zero)
        count.size = self._reader.offset
        if compression is not None:
            count.compression = compression.name.lower()

    def _zero(self, packet: Packet) -> Iterator[events.MultifdRun]:
        if packet.block is not None and len(packet.zero):
            first = multifd.PACKET_HEADER_SIZE + len(packet.normal) * multifd.OFFSET.itemsize
            yield events.MultifdRun(
                packet.offset + first,
                packet.block,
                packet.block_index,
                packet.zero,
                None,
                channel=self.count.channel,
                stride=multifd.OFFSET.itemsize,
            )

    def _plain(self, packet: Packet, payload: memoryview) -> events.MultifdRun:
        assert packet.block is not None
        with self._named():
            data = self._reader.pages(payload)
        together = packet.compression != multifd.Compression.NONE
        return events.MultifdRun(
            packet.payload_offset,
            packet.block,
            packet.block_index,
            packet.normal,
            data,
            channel=self.count.channel,
            stride=0 if together else data.shape[1],
        )

    def _greet(self) -> Greeting:
        data = self._read(memoryview(bytearray(self._reader.wanted)))
        with self._named():
            if not data:
                raise StreamError("not a multifd channel: it is empty", offset=0)
            return self._reader.greet(data)

    def _read(self, into: memoryview) -> memoryview:
        """Fill the view and return it, or an empty view at the end of the channel.

        Raises ChannelError if the channel ends within the requested bytes.
        """
        with self._named():
            count = fill(self._stream, into)
            if count and count < len(into):
                offset = self._reader.offset + count
                what = "its greeting" if self._reader.greeting is None else "a packet"
                raise StreamError(f"the channel ends within {what}", offset=offset)
        return into[:count]

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ChannelError:
            raise
        except StreamError as error:
            raise ChannelError(self.file, error) from None


class Channels:
    """All channels of a multifd migration except the main one.

    Raises ChannelError if a file is not a channel, if a channel is missing or given twice, or if
    they are not from the same migration.
    """

    def __init__(self, opened: Sequence[tuple[str, BinaryIO]]) -> None:
        self._channels = sorted(
            (_Channel(file, stream) for file, stream in opened), key=lambda one: one.count.channel
        )
        self._at_flush = False
        self._points = 0
        self._check_numbers()

    @property
    def counts(self) -> list[ChannelCount]:
        """Return the counts of packets and pages of each channel, as far as it was read."""
        return [channel.count for channel in self._channels]

    def merge(self, main: Iterable[Found]) -> Iterator[Found]:
        """Yield the events of the main channel, with those of the other channels where they belong.

        Page data is valid until the next event is requested. Raises ChannelError, and any error
        that `main` raises.
        """
        first_piece = False
        for event in main:
            if isinstance(event, events.Configuration):
                self._check_source(event)
            elif isinstance(event, events.RamBlocks):
                for channel in self._channels:
                    channel.list_blocks(event)
                first_piece = True
            elif isinstance(event, events.MultifdFlush):
                # In streams that have flush records, these are the sync points; the first piece of
                # RAM has one.
                self._at_flush |= first_piece
                first_piece = False
                yield from self._up_to_sync()
            elif isinstance(event, events.EndOfRam):
                first_piece = False
                if not self._at_flush:
                    yield from self._up_to_sync()
            elif isinstance(event, events.EndOfStream):
                self._check_end()
            yield event

    def _up_to_sync(self) -> Iterator[events.MultifdRun]:
        """Yield the pages that the channels sent before the next sync point."""
        left = list(self._channels)
        while left:
            channel = min(left, key=lambda one: one.number)
            packet = channel.peek()
            if packet is None:
                point = f"sync point {self._points} of the main channel"
                raise channel.fail(f"the channel ends before {point}: it was cut short")
            yield from channel.take(packet)
            if packet.sync:
                left.remove(channel)
        self._points += 1

    def _check_numbers(self) -> None:
        """Raise ChannelError unless each channel is present once and all have the same UUID."""
        first = self._channels[0]
        for number, channel in enumerate(self._channels):
            found = channel.count.channel
            if number and found == self._channels[number - 1].count.channel:
                other = self._channels[number - 1].file
                raise channel.fail(f"channel {found} occurs twice: it is in {other}, too")
            if found != number:
                numbers = ", ".join(str(each.count.channel) for each in self._channels)
                raise channel.fail(f"channel {number} is missing: there are {numbers}")
            if channel.uuid != first.uuid:
                raise channel.fail(f"another machine's channel than {first.file}: its UUID differs")

    def _check_source(self, configuration: events.Configuration) -> None:
        uuid = configuration.uuid
        if uuid is not None and uuid != self._channels[0].uuid:
            message = "another machine's channel than the main one: its UUID differs"
            raise self._channels[0].fail(message)

    def _check_end(self) -> None:
        """Raise ChannelError if pages follow the last sync point, or if a packet is missing."""
        last = f"sync point {self._points - 1}, the main channel's last"
        for channel in self._channels:
            while (packet := channel.peek()) is not None:
                if packet.sync or packet.block is not None:
                    raise channel.fail(f"pages or a sync point behind {last}")
                list(channel.take(packet))
        sent = 1 + max(channel.highest for channel in self._channels)
        found = sum(channel.count.packets for channel in self._channels)
        if found != sent:
            message = (
                f"the source sent {sent} packets, {found} are in {len(self._channels)} channels"
            )
            raise self._channels[-1].fail(f"{message}: give all of one migration by --channel")


@contextmanager
def opened_channels(files: Sequence[str]) -> Iterator[Channels | None]:
    """Open the files of all channels, and yield None if there are none. Raises ChannelError,
    OSError.
    """
    with ExitStack() as stack:
        opened = []
        for file in files:
            raw = stack.enter_context(open(file, "rb"))
            opened.append((file, _content(file, cast(BinaryIO, raw))))
        yield Channels(opened) if opened else None


def _content(file: str, raw: BinaryIO) -> BinaryIO:
    """Return a stream of the file's content, decompressed if necessary."""
    source = sought_or_source(raw)
    for _ in range(MAX_LAYERS):
        head = source.read(HEAD)
        give_back(source, head)
        found = format_of(head)
        if found is None:
            return source
        source = cast(BinaryIO, Source(found.open(source, 0)))
    error = StreamError(f"more than {MAX_LAYERS} layers of compression", offset=0)
    raise ChannelError(file, error)
