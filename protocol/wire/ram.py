"""Declarations of the records of the `ram` section, version 4.

Source: QEMU's documentation, docs/devel/migration/main.rst, and captured streams. Every record
begins with a be64, `address | flags`: the address is a multiple of the page size.
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

from .marks import RamFlag
from .stream import Str8

SECTION_NAME = "ram"
SECTION_VERSION = 4


XBZRLE_ENCODING = 1
"""The only one that there is."""


RecordHeader = c.Int64ub
"""address | flags"""

RECORD_HEADER_SIZE: int = RecordHeader.sizeof()

BlockEntry = c.Struct("name" / Str8, "length" / c.Int64ub)
"""One RAM block in the list behind MEM_SIZE, `length` in bytes."""

BlockPageSize = c.Int64ub
"""Behind a BlockEntry, with postcopy, where the block has huge pages."""

BlockAddress = c.Int64ub
"""Behind a BlockEntry, with x-ignore-shared: where in the guest's physical memory it begins."""


def plain_record(page_size: int, *, continued: bool) -> c.Construct:
    """PAGE: header, name of the block unless CONTINUE, one page."""
    name = () if continued else ("name" / Str8,)
    return c.Struct("header" / RecordHeader, *name, "page" / c.Bytes(page_size))


def zero_record(*, continued: bool) -> c.Construct:
    """ZERO: header, name of the block unless CONTINUE, the byte that fills the page."""
    name = () if continued else ("name" / Str8,)
    return c.Struct("header" / RecordHeader, *name, "fill" / c.Int8ub)


XbzrleHead = c.Struct("encoding" / c.Int8ub, "length" / c.Int16ub)
"""Before the encoded bytes."""

XBZRLE_HEAD_SIZE: int = RECORD_HEADER_SIZE + XbzrleHead.sizeof()
"""Bytes of an XBZRLE record before the encoding, where the record continues a block."""


def xbzrle_record(*, continued: bool) -> c.Construct:
    """XBZRLE: header, name of the block unless CONTINUE, the encoding (see `xbzrle`)."""
    name = () if continued else ("name" / Str8,)
    return c.Struct(
        "header" / RecordHeader,
        *name,
        "encoding" / c.Const(XBZRLE_ENCODING, c.Int8ub),
        "data" / c.Prefixed(c.Int16ub, c.GreedyBytes),
    )


CompressedHead = c.Int32ub
"""Before the zlib data: its length in bytes."""

COMPRESSED_HEAD_SIZE: int = RECORD_HEADER_SIZE + CompressedHead.sizeof()
"""Bytes of a COMPRESS_PAGE record before its data, where the record continues a block."""


def compressed_record(*, continued: bool) -> c.Construct:
    """COMPRESS_PAGE: header, name of the block unless CONTINUE, zlib data (see `compress`)."""
    name = () if continued else ("name" / Str8,)
    return c.Struct("header" / RecordHeader, *name, "data" / c.Prefixed(c.Int32ub, c.GreedyBytes))


def mem_size(total: int) -> bytes:
    """The MEM_SIZE record; the block list follows."""
    data: bytes = RecordHeader.build(total | RamFlag.MEM_SIZE)
    return data


def end_of_ram() -> bytes:
    """The EOS record."""
    data: bytes = RecordHeader.build(int(RamFlag.EOS))
    return data


def multifd_flush() -> bytes:
    """The MULTIFD_FLUSH record."""
    data: bytes = RecordHeader.build(int(RamFlag.MULTIFD_FLUSH))
    return data
