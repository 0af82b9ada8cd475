"""Multifd channels, and their main channel, with pages of a known content."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zstandard
from vmferry.protocol import events
from vmferry.protocol.wire import multifd
from vmferry.protocol.wire.multifd import Compression, PacketFlag

from tests.streams import PAGE, closing, opening, page_run, ram_part, to_bytes

UUID = bytes(range(16))

BLOCKS = (events.RamBlock("pc.ram", 64 * PAGE), events.RamBlock("pc.rom", 4 * PAGE))
"""The RAM of the guest that migrates: small, since all of it is sent several times."""


def page(seed: int) -> bytes:
    """Return a page of its own content, half of it zeros."""
    return np.random.default_rng(seed).bytes(PAGE // 2).ljust(PAGE, b"\0")


@dataclass
class Channel:
    """Writes one channel: packets are appended to `data`."""

    number: int
    compression: Compression = Compression.NONE
    uuid: bytes = UUID
    data: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        values = {"magic": multifd.MAGIC, "version": multifd.VERSION, "uuid": self.uuid}
        self.data += multifd.Hello.build({**values, "channel": self.number})
        self._zlib = zlib.compressobj(1)
        self._zstd = zstandard.ZstdCompressor(1).compressobj()

    def send(
        self,
        number: int,
        pages: dict[int, bytes] | None = None,
        zero: Sequence[int] = (),
        *,
        block: str = "pc.ram",
        sync: bool = False,
        changes: dict[str, Any] | None = None,
    ) -> None:
        """Append packet `number`: pages of a block by their numbers; `changes`: of its header."""
        pages = pages or {}
        payload = self._compress(b"".join(pages.values())) if pages else b""
        header = {
            "magic": multifd.MAGIC,
            "version": multifd.VERSION,
            "flags": (PacketFlag.SYNC if sync else 0) | (self.compression if pages else 0),
            "allocated": multifd.pages_of_packet(PAGE) if pages or zero else 0,
            "normal": len(pages),
            "payload_size": len(payload),
            "number": number,
            "zero": len(zero),
            "block": block.encode().ljust(256, b"\0") if pages or zero else bytes(256),
            **(changes or {}),
        }
        offsets = np.zeros(multifd.pages_of_packet(PAGE), multifd.OFFSET)
        given = [*pages, *zero]
        offsets[: len(given)] = np.array(given, np.uint64) * np.uint64(PAGE)
        self.data += multifd.PacketHeader.build(header) + offsets.tobytes() + payload

    def _compress(self, data: bytes) -> bytes:
        if self.compression == Compression.ZLIB:
            return self._zlib.compress(data) + self._zlib.flush(zlib.Z_SYNC_FLUSH)
        if self.compression == Compression.ZSTD:
            flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
            return self._zstd.compress(data) + self._zstd.flush(flush)
        return data


@dataclass(frozen=True)
class Migration:
    """The bytes of a main channel and of the others, and the RAM that they build."""

    main: bytes
    channels: tuple[bytes, ...]
    ram: dict[str, bytes]


@dataclass
class _Source:
    """Sends pages over channels, and keeps what RAM they build."""

    channels: list[Channel]
    images: dict[str, bytearray]
    packets: int = 0

    def put(self, channel: int, block: str, pages: dict[int, bytes], zero: Sequence[int]) -> None:
        """Send a packet."""
        to = self.channels[channel % len(self.channels)]
        to.send(self.packets, pages, zero, block=block)
        self.packets += 1
        self.note(block, {**pages, **dict.fromkeys(zero, bytes(PAGE))})

    def note(self, block: str, pages: dict[int, bytes]) -> None:
        """Take pages over the main channel."""
        for at, content in pages.items():
            self.images[block][at * PAGE : (at + 1) * PAGE] = content

    def sync(self) -> None:
        """Send a sync point over each channel."""
        for channel in self.channels:
            channel.send(self.packets, sync=True)
            self.packets += 1


def migration(
    compression: Compression = Compression.NONE, *, at_flush: bool = True, count: int = 2
) -> Migration:
    """Return a migration of three rounds. Pages go over another channel in each round; zero pages
    over a channel or (without flush records) over the main one, where some end as zero, too."""
    source = _Source(
        [Channel(number, compression) for number in range(count)],
        {block.name: bytearray(block.length) for block in BLOCKS},
    )
    mark = [events.MultifdFlush(0)] if at_flush else []
    first = opening(BLOCKS, answers=True)
    # The flush record stands in the first piece, before its end.
    main: list[events.Event] = [*first[:-2], *mark, *first[-2:]]
    source.sync()
    for turn in range(3):
        for start in range(0, 64, 8):
            pages = {at: page(1000 * turn + at) for at in range(start, start + 6)}
            source.put(start // 8 + turn, "pc.ram", pages, [start + 6] if at_flush else [])
        source.put(turn, "pc.rom", {at: page(9000 + turn + at) for at in range(4)}, [])
        zero = [*range(7, 64, 8), *([] if at_flush else range(6, 64, 8))]
        source.sync()
        run = page_run(0, zero, 0, turn > 0, blocks=BLOCKS)
        main += ram_part(run, *mark)
    # These were sent over channels before, as something else.
    main += ram_part(page_run(0, [0, 9], 0, blocks=BLOCKS), *mark)
    source.sync()
    source.note("pc.ram", dict.fromkeys([0, 9], bytes(PAGE)))
    if not at_flush:
        # The last piece of `ram` ends at a sync point, too.
        source.sync()
    ram = {name: bytes(image) for name, image in source.images.items()}
    channels = tuple(bytes(channel.data) for channel in source.channels)
    return Migration(to_bytes([*main, *closing()]), channels, ram)
