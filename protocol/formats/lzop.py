"""Declare the lzop file format: blocks of LZO1X data.

Source: files that lzop 1.04 made, with each of its options for methods and checksums.
"""

from __future__ import annotations

from enum import IntFlag

import construct as c  # type: ignore[import-untyped]

from ..wire.stream import Str8

MAGIC = b"\x89LZO\0\r\n\x1a\n"
METHODS = (1, 2, 3)
"""Supported methods: LZO1X-1, LZO1X-1(15) and LZO1X-999, which are decompressed in the same way."""
MAX_BLOCK = 256 << 10
"""Limit for the content of a block, in bytes."""


class Flag(IntFlag):
    """Flags of the header; `OF` in a name says what a checksum covers: content or data."""

    ADLER32_OF_CONTENT = 0x1
    ADLER32_OF_DATA = 0x2
    EXTRA_FIELD = 0x40
    CRC32_OF_CONTENT = 0x100
    CRC32_OF_DATA = 0x200
    FILTER = 0x800


Header = c.Struct(
    "magic" / c.Const(MAGIC),
    "version" / c.Int16ub,
    "library" / c.Int16ub,
    "needed" / c.Int16ub,
    "method" / c.Int8ub,
    "level" / c.Int8ub,
    "flags" / c.Int32ub,
    "mode" / c.Int32ub,
    "time" / c.Int64ub,
    "name" / Str8,
    "checksum" / c.Int32ub,
)
MAX_HEADER = 293
"""Limit for the header, in bytes: its size with the longest name."""

Size = c.Int32ub
"""Size in a block's head, in bytes.

The size of its content is first (0: no block follows), then that of its compressed data, which
is the content itself if both are equal. The checksums and the data follow.
"""
