"""Declarations of an lzop file: blocks of LZO1X data.

Source: files that lzop 1.04 made, with each of its options for methods and checksums.
"""

from __future__ import annotations

from enum import IntFlag

import construct as c  # type: ignore[import-untyped]

from ..wire.stream import Str8

MAGIC = b"\x89LZO\0\r\n\x1a\n"
METHODS = (1, 2, 3)
"""LZO1X-1, LZO1X-1(15), LZO1X-999: what they make is decompressed alike."""
MAX_BLOCK = 256 << 10
"""Bytes that a block holds."""


class Flag(IntFlag):
    """`of` says what a checksum is of: the content, or the compressed data."""

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
"""With the longest name."""

Size = c.Int32ub
"""Of a block: of its content (0: the last one was before it), then of its data, which is the
content itself where both are the same. The checksums, and the data, follow."""
