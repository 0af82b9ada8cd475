"""Read and write the iterative section `dirty-bitmap`, declared in `wire.dirty_bitmap`."""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

from ..errors import StreamError
from ..section_events import BitmapBits, BitmapChunk, BitmapStart
from ..wire.cursor import Cursor, Incomplete, decode_name
from ..wire.dirty_bitmap import FLAGS, MORE, SECTION_NAME, BitmapFlag, Bits, BitsSize, Start
from ..wire.marks import SectionType
from ..wire.stream import Str8

_MAX_BITS = 1 << 16
"""Limit for the bits of one chunk, in bytes; QEMU sends at most 1 KiB."""
_MAX_BITMAPS = 1 << 16


_KINDS = BitmapFlag.START | BitmapFlag.COMPLETE | BitmapFlag.BITS
_ALL = 0x7F


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
    if head & MORE:
        second = cursor.peek(1)
        size = 4 if second & MORE else 2
    declaration, marks = FLAGS[size]
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


def check_chunks(data: bytes) -> None:
    """Raise StreamError unless these bytes are whole chunks, each with its names, without EOS."""
    reader, cursor = DirtyBitmapReader(), Cursor(memoryview(data), 0)
    names = BitmapFlag.DEVICE_NAME | BitmapFlag.BITMAP_NAME
    while cursor.position < len(data):
        try:
            (chunk,) = reader.read(cursor)
        except Incomplete:
            raise _error("a chunk is cut short", cursor.offset) from None
        if chunk.flags & names != names or chunk.flags & BitmapFlag.EOS:
            raise _error("a chunk has no names, or ends the section", chunk.offset)


def _error(message: str, offset: int) -> StreamError:
    return StreamError(message, offset=offset, section=SECTION_NAME)


def write_chunk(event: BitmapChunk) -> bytes:
    """Return the bytes of a chunk."""
    declaration, marks = FLAGS[event.flags_size]
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
