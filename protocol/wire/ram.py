"""Declare the records of the `ram` section, version 4.

Source: QEMU's documentation, docs/devel/migration/main.rst, and captured streams. Every record
begins with a be64, `address | flags`: the address is a multiple of the page size.
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

from .marks import RAM_SECTION, RAM_VERSION, RamFlag
from .stream import Str8

SECTION_NAME = RAM_SECTION
SECTION_VERSION = RAM_VERSION


XBZRLE_ENCODING = 1
"""The only encoding number that QEMU defines for XBZRLE."""


RecordHeader = c.Int64ub
"""The be64 that begins each record: address | flags."""

RECORD_HEADER_SIZE: int = RecordHeader.sizeof()

BlockEntry = c.Struct("name" / Str8, "length" / c.Int64ub)
"""Entry for one RAM block in the list after MEM_SIZE; `length` in bytes."""

BlockPageSize = c.Int64ub
"""Page size in bytes after a BlockEntry, with postcopy, if the block has huge pages."""

BlockAddress = c.Int64ub
"""Guest-physical address of the block after a BlockEntry, with x-ignore-shared."""


def plain_record(page_size: int, *, continued: bool) -> c.Construct:
    """Return the declaration of PAGE: header, name of the block unless CONTINUE, one page."""
    name = () if continued else ("name" / Str8,)
    return c.Struct("header" / RecordHeader, *name, "page" / c.Bytes(page_size))


def zero_record(*, continued: bool) -> c.Construct:
    """Return the declaration of ZERO: header, block name unless CONTINUE, fill byte."""
    name = () if continued else ("name" / Str8,)
    return c.Struct("header" / RecordHeader, *name, "fill" / c.Int8ub)


XbzrleHead = c.Struct("encoding" / c.Int8ub, "length" / c.Int16ub)
"""The part of an XBZRLE record between the block's name and the encoded bytes."""

XbzrleContinued = c.Struct("header" / RecordHeader, *XbzrleHead.subcons)
"""An XBZRLE record before its encoded bytes, if it has the flag CONTINUE."""

XBZRLE_HEAD_SIZE: int = XbzrleContinued.sizeof()


def xbzrle_record(*, continued: bool) -> c.Construct:
    """Return the declaration of XBZRLE: header, block name unless CONTINUE, encoding."""
    name = () if continued else ("name" / Str8,)
    return c.Struct(
        "header" / RecordHeader,
        *name,
        "encoding" / c.Const(XBZRLE_ENCODING, XbzrleHead.encoding.subcon),
        "data" / c.Prefixed(XbzrleHead.length.subcon, c.GreedyBytes),
    )


CompressedHead = c.Int32ub
"""Length of the zlib data that follows, in bytes."""

CompressedContinued = c.Struct("header" / RecordHeader, "length" / CompressedHead)
"""A COMPRESS_PAGE record before its data, if it has the flag CONTINUE."""

COMPRESSED_HEAD_SIZE: int = CompressedContinued.sizeof()


def compressed_record(*, continued: bool) -> c.Construct:
    """Return the declaration of COMPRESS_PAGE: header, block name unless CONTINUE, zlib data."""
    name = () if continued else ("name" / Str8,)
    return c.Struct(
        "header" / RecordHeader, *name, "data" / c.Prefixed(CompressedHead, c.GreedyBytes)
    )


def mem_size(total: int) -> bytes:
    """Return the MEM_SIZE record, which the block list follows."""
    data: bytes = RecordHeader.build(total | RamFlag.MEM_SIZE)
    return data


def end_of_ram() -> bytes:
    """Return the record that ends a piece of the RAM section."""
    data: bytes = RecordHeader.build(int(RamFlag.EOS))
    return data


def multifd_flush() -> bytes:
    """Return the record that asks the receiver to wait for all channels of multifd."""
    data: bytes = RecordHeader.build(int(RamFlag.MULTIFD_FLUSH))
    return data
