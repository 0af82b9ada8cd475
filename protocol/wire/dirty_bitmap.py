"""Declare the iterative section `dirty-bitmap`: parts of disks changed since a backup.

Chunks begin with flags of one, two or four bytes: the top bit of the first byte is set if there are
two, that of the second if there are four. Omitted names are those of the chunk before. Source: the
layout described in QEMU's migration/block-dirty-bitmap.c (granularity is a be32, though), and
captured streams.
"""

from __future__ import annotations

from enum import IntFlag

import construct as c  # type: ignore[import-untyped]

SECTION_NAME = "dirty-bitmap"
SECTION_VERSION = 1


class BitmapFlag(IntFlag):
    """Flags of a chunk: which fields it has, and its kind."""

    EOS = 0x01
    ZEROES = 0x02
    BITMAP_NAME = 0x04
    DEVICE_NAME = 0x08
    START = 0x10
    COMPLETE = 0x20
    BITS = 0x40


MORE = 0x80
"""The top bit of a byte of flags: more bytes of flags follow."""
FLAGS = {1: (c.Int8ub, 0), 2: (c.Int16ub, MORE << 8), 4: (c.Int32ub, (MORE << 8 | MORE) << 16)}
"""Declaration of flags, and the bits that only announce more bytes, by the number of bytes."""

Start = c.Struct("granularity" / c.Int32ub, "flags" / c.Int8ub)
Bits = c.Struct("first_sector" / c.Int64ub, "sectors" / c.Int32ub)
BitsSize = c.Int64ub
"""Bytes of bits that follow Bits, unless ZEROES."""
