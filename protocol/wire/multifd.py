"""Declarations of multifd: pages that go over connections ("channels") of their own.

The main channel carries the ordinary stream. Each other channel begins with a Hello, and packets
follow: a PacketHeader, room for as many offsets as a packet may have pages, and a payload, which is
the pages with content, in the order of their offsets, compressed as the flags say. Pages that are
zero have an offset behind those of the others, and no payload (QEMU 9.0 on); QEMU before 9.0, or
one that is told to, sends them on the main channel.

Sync points order pages in time: each channel has a packet with the flag SYNC for each sync point of
the main channel. That is a MULTIFD_FLUSH record (machine types from 8.1 on), or the end of each
piece of `ram`. What a channel sends before its SYNC comes before that of any channel behind it.

Source: QEMU's documentation, docs/devel/migration/main.rst and features.rst, and captured channels
of QEMU 7.2 and 10.0. In a packet without pages of QEMU 7.2, the block's name, the size of the
payload, and the offsets are those of a packet before: nothing of them follows. So are offsets
behind those of the packet's pages.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import construct as c  # type: ignore[import-untyped]
import numpy as np

MAGIC = 0x11223344
VERSION = 1
PACKET_BYTES = 512 << 10
"""Bytes of RAM that the pages of one packet have, at most."""
MAX_PAYLOAD = 2 * PACKET_BYTES
"""Bytes of a payload: compressed pages may be a little longer than pages."""
MAX_CHANNELS = 256
"""Channels are numbered by one byte."""


class PacketFlag(IntFlag):
    """The flags of a packet, beside the field of its compression."""

    SYNC = 0x01
    DEVICE_STATE = 0x40


COMPRESSION_MASK = 0x3E
"""The bits of the field that says how the payload is compressed."""


class Compression(IntEnum):
    """How the payloads of a channel are compressed: each is a piece of one continuous stream."""

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
"""The first bytes of a channel. `uuid`: of the source's machine, zeros where it has none;
`channel`: its number, from 0 on."""

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
"""`normal` pages with content, `zero` pages without; `allocated`: as many offsets as the source has
room for, or 0. `number`: of the packet, counted over all channels. `block`: the RAM block's name,
and zeros behind it."""

PACKET_HEADER_SIZE: int = PacketHeader.sizeof()

OFFSET = np.dtype(">u8")
"""Where in its block a page begins, in bytes."""


def pages_of_packet(page_size: int) -> int:
    """Return how many pages a packet has at most; there is room for so many offsets in each."""
    return PACKET_BYTES // page_size


def head_size(page_size: int) -> int:
    """Return the bytes of a packet before its payload."""
    return PACKET_HEADER_SIZE + pages_of_packet(page_size) * OFFSET.itemsize
