"""Declare multifd: pages that travel over connections ("channels") of their own.

The main channel carries the ordinary stream. Each other channel begins with a Hello, followed by
packets: a PacketHeader, room for as many offsets as a packet may have pages, and a payload, which
is the pages with content, in the order of their offsets, compressed as the flags say. Zero pages
have an offset after those of the others, and no payload (QEMU 9.0 and later); QEMU before 9.0, or a
later one that is configured to, sends them on the main channel.

Sync points order pages in time: each channel has a packet with the flag SYNC for each sync point of
the main channel. That is a MULTIFD_FLUSH record (machine types from 8.1 on), or the end of each
piece of `ram`. Pages before a SYNC are older than pages after the same SYNC in any channel.

Source: QEMU's documentation, docs/devel/migration/main.rst and features.rst, and captured channels
of QEMU 7.2 and 10.0. In a packet without pages of QEMU 7.2, the block's name, the size of the
payload and the offsets are left over from an earlier packet and have no meaning. The same is true
of offsets after those of the packet's pages.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import construct as c  # type: ignore[import-untyped]
import numpy as np

from .packed import names_of, struct_of

MAGIC = 0x11223344
VERSION = 1
PACKET_BYTES = 512 << 10
"""Limit for the pages of one packet, in bytes of RAM."""
MAX_PAYLOAD = 2 * PACKET_BYTES
"""Limit for a payload, in bytes: compressed pages may be a little longer than pages."""
MAX_CHANNELS = 256
"""Limit for the number of channels: one byte holds a channel's number."""


class PacketFlag(IntFlag):
    """The flags of a packet, apart from the field for its compression."""

    SYNC = 0x01
    DEVICE_STATE = 0x40


COMPRESSION_MASK = 0x3E
"""The bits of the flags that say how the payload is compressed."""


class Compression(IntEnum):
    """Compression of a channel's payloads, each of which is a piece of one continuous stream."""

    NONE = 0x00
    ZLIB = 0x02
    ZSTD = 0x04
    QPL = 0x08
    UADK = 0x10
    QATZIP = 0x20


Hello = c.Struct(
    "magic" / c.Int32ub,
    "version" / c.Int32ub,
    "uuid" / c.Bytes(16),
    "channel" / c.Int8ub,
    c.Padding(7 + 32),
)
"""The first bytes of a channel.

`uuid`: that of the source's machine, zeros if it has none; `channel`: its number, from 0 on.
"""

HELLO_SIZE: int = Hello.sizeof()

PacketHeader = c.Struct(
    "magic" / c.Int32ub,
    "version" / c.Int32ub,
    "flags" / c.Int32ub,
    "allocated" / c.Int32ub,
    "normal" / c.Int32ub,
    "payload_size" / c.Int32ub,
    "number" / c.Int64ub,
    "zero" / c.Int32ub,
    c.Padding(4 + 3 * 8),
    "block" / c.Bytes(256),
)
"""The fixed part of a packet.

`normal`: number of pages with content; `zero`: number of zero pages; `allocated`: number of offsets
that the source has room for, or 0. `number`: the packet's number, counted over all channels.
`block`: the RAM block's name, padded with zeros.
"""

PACKET_HEADER_SIZE: int = PacketHeader.sizeof()
PACKET_HEADER_FIELDS = names_of(PacketHeader)
PACKET_HEADER_STRUCT = struct_of(PacketHeader)

OFFSET = np.dtype(">u8")
"""The position of a page in its block, in bytes."""


def pages_of_packet(page_size: int) -> int:
    """Return how many pages a packet has at most; each packet has room for that many offsets."""
    return PACKET_BYTES // page_size


def head_size(page_size: int) -> int:
    """Return the bytes of a packet before its payload."""
    return PACKET_HEADER_SIZE + pages_of_packet(page_size) * OFFSET.itemsize
