"""Read and write the iterative section `dirty-bitmap`: parts of disks changed since a backup.

Chunks begin with flags of one, two or four bytes: the top bit of the first byte is set if there are
two, that of the second if there are four. Omitted names are those of the chunk before. Source: the
layout described in QEMU's migration/block-dirty-bitmap.c (granularity is a be32, though), and
captured streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag

import construct as c  # type: ignore[import-untyped]

from ..errors import StreamError
from ..wire.cursor import Cursor, decode_name
from ..wire.marks import SectionType
from ..wire.stream import Str8

SECTION_NAME = "dirty-bitmap"
SECTION_VERSION = 1

_MAX_BITS = 1 << 16
"""Limit for the bits of one chunk, in bytes; QEMU sends at most 1 KiB."""
_MAX_BITMAPS = 1 << 16


class BitmapFlag(IntFlag):
    """Flags of a chunk: which fields it has, and its kind."""

    EOS = 0x01
    ZEROES = 0x02
    BITMAP_NAME = 0x04
    DEVICE_NAME = 0x08
    START = 0x10
    COMPLETE = 0x20
    BITS = 0x40


_KINDS = BitmapFlag.START | BitmapFlag.COMPLETE | BitmapFlag.BITS
_ALL = 0x7F
_MORE = 0x80
"""The top bit of a byte of flags: more bytes of flags follow."""
_FLAGS = {1: (c.Int8ub, 0), 2: (c.Int16ub, _MORE << 8), 4: (c.Int32ub, (_MORE << 8 | _MORE) << 16)}
"""By number of bytes of flags: their declaration, and the bits that only announce more bytes."""

Start = c.Struct("granularity" / c.Int32ub, "flags" / c.Int8ub)
Bits = c.Struct("first_sector" / c.Int64ub, "sectors" / c.Int32ub)
BitsSize = c.Int64ub
"""Bytes of bits that follow Bits, unless ZEROES."""


@dataclass(frozen=True)
class BitmapStart:
    """The start of a bitmap with `granularity` bytes per bit; `flags`: 1 enabled, 2 persistent."""

    granularity: int
    flags: int


@dataclass(frozen=True)
class BitmapBits:
    """A part of a bitmap, for sectors of 512 bytes; `bits`: little-endian, or None if all zero."""

    first_sector: int
    sectors: int
    bits: bytes | None = field(repr=False)


@dataclass(frozen=True)
class BitmapChunk:
    """One chunk of the section.

    `node`, `bitmap`: the names in force; `flags` says which are on the wire. `body`: None if the
    chunk has only flags. `flags_size`: bytes of the flags.
    """

    offset: int
    flags: BitmapFlag
    node: str = ""
    bitmap: str = ""
    body: BitmapStart | BitmapBits | None = None
    flags_size: int = 1


class DirtyBitmapReader:
    """Reader of one `dirty-bitmap` section, over all its pieces."""

    def __init__(self) -> None:
        self.at_end = False
        self._node = ""
        self._bitmap = ""
        self._started: set[tuple[str, str]] = set()

    def begin(self, kind: SectionType) -> None:  # noqa: ARG002
        """Begin a piece of the section."""
        self.at_end = False

    def read(self, cursor: Cursor) -> list[BitmapChunk]:
        """Return the next chunk. Raises StreamError."""
        offset = cursor.offset
        flags, size = _read_flags(cursor)
        # Names change only once the whole chunk has been read: Incomplete restarts it.
        node, bitmap = self._node, self._bitmap
        if flags & BitmapFlag.DEVICE_NAME:
            node = _name(cursor, offset)
        if flags & BitmapFlag.BITMAP_NAME:
            bitmap = _name(cursor, offset)
        body = self._read_body(cursor, flags, (node, bitmap), offset)
        self._node, self._bitmap = node, bitmap
        if flags & BitmapFlag.START:
            self._started.add((node, bitmap))
        self.at_end = bool(flags & BitmapFlag.EOS)
        return [BitmapChunk(offset, flags, node, bitmap, body, size)]

    def _read_body(
        self, cursor: Cursor, flags: BitmapFlag, names: tuple[str, str], offset: int
    ) -> BitmapStart | BitmapBits | None:
        kind = flags & _KINDS
        if kind == BitmapFlag.START:
            if not all(names) or names in self._started or len(self._started) >= _MAX_BITMAPS:
                raise _error(f"a bitmap {'/'.join(names)!r}, without name, twice, too many", offset)
            start = cursor.take(Start)
            if start.granularity < 512 or start.granularity & (start.granularity - 1):
                raise _error(f"a bitmap of {start.granularity} bytes a bit", offset)
            return BitmapStart(start.granularity, start.flags)
        if kind and names not in self._started:
            raise _error(f"the bitmap {'/'.join(names)!r} was not begun", offset)
        return _read_bits(cursor, flags, offset) if kind == BitmapFlag.BITS else None


def _read_flags(cursor: Cursor) -> tuple[BitmapFlag, int]:
    offset, size = cursor.offset, 1
    head = cursor.peek()
    if head & _MORE:
        second = cursor.peek(1)
        size = 4 if second & _MORE else 2
    declaration, marks = _FLAGS[size]
    value = cursor.take(declaration) & ~marks
    kinds = bin(value & _KINDS).count("1")
    stray = value & BitmapFlag.ZEROES and not value & BitmapFlag.BITS
    if value > _ALL or kinds > 1 or stray or not value & (_KINDS | BitmapFlag.EOS):
        raise _error(f"flags {value:#x} are no chunk", offset)
    return BitmapFlag(value), size


def _read_bits(cursor: Cursor, flags: BitmapFlag, offset: int) -> BitmapBits:
    bits, data = cursor.take(Bits), None
    if not flags & BitmapFlag.ZEROES:
        size = cursor.take(BitsSize)
        if size > _MAX_BITS:
            raise _error(f"a chunk of {size} bytes of bits", offset)
        data = cursor.take(c.Bytes(size), size)
    return BitmapBits(bits.first_sector, bits.sectors, data)


def _name(cursor: Cursor, offset: int) -> str:
    raw = cursor.take(Str8)
    name = decode_name(raw)
    if name is None:
        raise _error(f"a disk or bitmap named {raw!r}", offset)
    return name


def _error(message: str, offset: int) -> StreamError:
    return StreamError(message, offset=offset, section=SECTION_NAME)


def write_chunk(event: BitmapChunk) -> bytes:
    """Return the bytes of a chunk."""
    declaration, marks = _FLAGS[event.flags_size]
    pieces = [declaration.build(int(event.flags) | marks)]
    if event.flags & BitmapFlag.DEVICE_NAME:
        pieces.append(Str8.build(event.node.encode()))
    if event.flags & BitmapFlag.BITMAP_NAME:
        pieces.append(Str8.build(event.bitmap.encode()))
    body = event.body
    if isinstance(body, BitmapStart):
        pieces.append(Start.build({"granularity": body.granularity, "flags": body.flags}))
    elif isinstance(body, BitmapBits):
        values = {"first_sector": body.first_sector, "sectors": body.sectors}
        pieces.append(Bits.build(values))
        if body.bits is not None:
            pieces += [BitsSize.build(len(body.bits)), body.bits]
    return b"".join(pieces)
