"""Read one channel of a multifd migration, without I/O.

A channel is a sequence of parts whose sizes are known before they arrive: a greeting, then packet
heads, each of which may have a payload after it. The caller gets `wanted` bytes from wherever they
arrive, and gives them to `greet`, `read_head` or `pages`. A payload that is not compressed need not
be given: the caller may receive it directly into the guest's memory, by the packet's offsets, and
then calls `passed`. No input is trusted: invalid data raises StreamError with its position in the
channel.
"""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from ..errors import StreamError, UnsupportedError
from ..events import RamBlock, RamBlocks
from ..pages.multifd_payload import Inflater, PayloadError, inflater
from ..wire import multifd
from ..wire.cursor import decode_name
from ..wire.multifd import Compression, PacketFlag

_HEADER = cast(Any, namedtuple)("_HEADER", multifd.PACKET_HEADER_FIELDS)
"""The values of a packet's header by name."""
_SYNC = int(PacketFlag.SYNC)
_USUAL = {
    int(kind) | sync: kind
    for kind in (Compression.NONE, Compression.ZLIB, Compression.ZSTD)
    for sync in (0, _SYNC)
}
"""Compression by the flags of a packet that can be read; to look them up takes little time."""


@dataclass(frozen=True)
class Greeting:
    """The greeting of a channel: the `uuid` of its source, and its number."""

    uuid: bytes
    channel: int


@dataclass(frozen=True, eq=False)
class Packet:
    """One packet as described by its head.

    `offset`: position of the packet in the channel; `number`: of the packet, counted over all
    channels; `sync`: whether a sync point follows it. `block`: None if it has no pages. `normal`
    (n,) and `zero` (m,): positions in the block of its pages, in bytes, with content and without.
    `payload_size`: bytes that follow, at `payload_offset` in the channel.
    """

    offset: int
    number: int
    sync: bool
    block: RamBlock | None
    block_index: int
    normal: npt.NDArray[np.uint64]
    zero: npt.NDArray[np.uint64]
    compression: Compression
    payload_offset: int
    payload_size: int


class ChannelReader:
    """Reader of one channel, from its first byte on.

    `offset`: bytes that were read; `greeting`: result of `greet`; `compression`: that of its
    payloads, as far as known. Errors name the packet by its number, which is counted over all
    channels.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.greeting: Greeting | None = None
        self.compression: Compression | None = None
        self._listed: dict[str, tuple[int, RamBlock]] = {}
        self._page_size = 0
        self._packet: Packet | None = None
        self._number: int | None = None
        self._last: int | None = None
        self._inflater: Inflater | None = None
        self._last_block: tuple[bytes | None, tuple[int, RamBlock]] = None, (0, RamBlock("", 0))

    @property
    def wanted(self) -> int:
        """Return the bytes of the next part.

        After the greeting, `list_blocks` has to be called before.
        """
        if self.greeting is None:
            return multifd.HELLO_SIZE
        if self._packet is not None:
            return self._packet.payload_size
        return multifd.head_size(self._page_size)

    def list_blocks(self, listed: RamBlocks) -> None:
        """Set the RAM blocks, before the first packet is read."""
        self._page_size = listed.page_size
        self._listed = {block.name: (index, block) for index, block in enumerate(listed.blocks)}

    def greet(self, data: memoryview) -> Greeting:
        """Read the greeting. Raises StreamError."""
        hello = multifd.Hello.parse(data)
        if hello.magic != multifd.MAGIC:
            self._fail("not a multifd channel: it does not begin as one")
        if hello.version != multifd.VERSION:
            self._refuse(f"version {hello.version} of multifd")
        self.greeting = Greeting(hello.uuid, hello.channel)
        self.offset += multifd.HELLO_SIZE
        return self.greeting

    def read_head(self, data: memoryview) -> Packet:
        """Read the next packet's head. Raises StreamError."""
        header = _HEADER(*multifd.PACKET_HEADER_STRUCT.unpack_from(data))
        if header.magic != multifd.MAGIC:
            behind = "" if self._last is None else f", behind packet {self._last}"
            self._fail(f"{header.magic:#010x} where a packet begins{behind}")
        self._number = self._last = header.number
        if header.version != multifd.VERSION:
            self._refuse(f"version {header.version} of a packet")
        compression = self._compression(header.flags)
        pages, most = header.normal + header.zero, multifd.pages_of_packet(self._page_size)
        if header.allocated > most or pages > (header.allocated or most):
            count = f"{header.normal} and {header.zero} pages of {header.allocated}"
            self._fail(f"a packet of {count}, with room for {most}")
        size = self._payload_size(header, compression)
        index, block = self._block(header.block) if pages else (0, None)
        offsets = np.frombuffer(data, multifd.OFFSET, pages, multifd.PACKET_HEADER_SIZE)
        native = offsets.astype(np.uint64)
        if block is not None:
            self._check_offsets(native, block)
        head = multifd.head_size(self._page_size)
        packet = Packet(
            self.offset,
            header.number,
            bool(header.flags & _SYNC),
            block,
            index,
            native[: header.normal],
            native[header.normal :],
            compression,
            self.offset + head,
            size,
        )
        self.offset += head
        if size:
            self._packet = packet
        else:
            self._number = None
        return packet

    def pages(self, payload: memoryview) -> npt.NDArray[np.uint8]:
        """Return the pages (n, page size) of the last packet read.

        The result is a view of the payload unless that is compressed. Raises StreamError if the
        payload is not exactly these pages.
        """
        packet = self._packet
        assert packet is not None
        count = len(packet.normal)
        if packet.compression == Compression.NONE:
            data = np.frombuffer(payload, np.uint8)
        else:
            if self._inflater is None:
                self._inflater = inflater(packet.compression)
            try:
                data = self._inflater.inflate(payload, count * self._page_size)
            except PayloadError as error:
                name = packet.compression.name.lower()
                self._fail(f"a payload that is not {count} pages in {name}: {error}")
        self.passed()
        return data.reshape(count, self._page_size)

    def passed(self) -> None:
        """Note that the caller received the last packet's payload, not compressed, itself."""
        assert self._packet is not None
        self.offset += self._packet.payload_size
        self._packet, self._number = None, None

    def _compression(self, flags: int) -> Compression:
        if flags in _USUAL:
            return _USUAL[flags]
        if flags & PacketFlag.DEVICE_STATE:
            self._refuse("a packet with the state of a device (VFIO)")
        if flags & ~(int(PacketFlag.SYNC) | multifd.COMPRESSION_MASK):
            self._fail(f"a packet with flags {flags:#x}")
        try:
            return Compression(flags & multifd.COMPRESSION_MASK)
        except ValueError:
            self._fail(f"a packet with flags {flags:#x}")

    def _payload_size(self, header: Any, compression: Compression) -> int:
        """Return the bytes after the head.

        Packets without pages have none, whatever their payload size says.
        """
        normal, size = int(header.normal), int(header.payload_size)
        if not normal:
            return 0
        if compression not in (Compression.NONE, Compression.ZLIB, Compression.ZSTD):
            self._refuse(f"compression by {compression.name}")
        if self.compression not in (None, compression):
            assert self.compression is not None
            both = f"{compression.name.lower()} behind {self.compression.name.lower()}"
            self._fail(f"compression changes within the channel: {both}")
        expected = normal * self._page_size
        most = expected if compression == Compression.NONE else multifd.MAX_PAYLOAD
        if not 0 < size <= most or (compression == Compression.NONE and size != expected):
            self._fail(f"a payload of {size} bytes for {normal} pages of {self._page_size}")
        self.compression = compression
        return size

    def _block(self, raw: bytes) -> tuple[int, RamBlock]:
        if raw == self._last_block[0]:
            return self._last_block[1]
        name, end, _ = raw.partition(b"\0")
        found = self._listed.get(decode_name(name) or "") if end else None
        if found is None:
            self._fail(f"pages of an unknown block {name[:80]!r}")
        self._last_block = raw, found
        return found

    def _check_offsets(self, offsets: npt.NDArray[np.uint64], block: RamBlock) -> None:
        # Two looks at all of them take less time than a list of the wrong ones.
        bits, within = int(np.bitwise_or.reduce(offsets)), self._page_size - 1
        if int(offsets.max()) < block.length and not bits & within:
            return
        wrong = (offsets >= block.length) | (offsets & np.uint64(within) != 0)
        at = int(offsets[wrong.argmax()])
        self._fail(f"a page at {at:#x} of block {block.name}, outside its RAM or between pages")

    def _fail(self, message: str) -> NoReturn:
        raise self.error(message)

    def _refuse(self, what: str) -> NoReturn:
        message = f"{what} is not supported{self._in_packet()}"
        raise UnsupportedError(message, offset=self.offset, section=self._name())

    def error(self, message: str) -> StreamError:
        """Return an error at the present place: it names channel, offset, and packet, if within."""
        return StreamError(message + self._in_packet(), offset=self.offset, section=self._name())

    def _in_packet(self) -> str:
        return "" if self._number is None else f" (packet {self._number})"

    def _name(self) -> str:
        return "multifd" if self.greeting is None else f"multifd channel {self.greeting.channel}"
