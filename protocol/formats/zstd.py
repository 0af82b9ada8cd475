"""Find the zstd frames around a stream, and their sizes, without decompressing them.

Source: RFC 8878, "Zstandard Compression and the 'application/zstd' Media Type".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import construct as c  # type: ignore[import-untyped]

from ..errors import StreamError
from ..wire.cursor import Cursor, Incomplete

MAGIC = 0xFD2FB528
SKIPPABLE_MAGICS = range(0x184D2A50, 0x184D2A60)
MAX_WINDOW = 128 << 20
"""Limit for the window that a frame may ask for, in bytes; `zstd` itself accepts as much."""
MAX_BLOCK = 128 << 10
"""Limit for one block, in bytes."""
MAX_EMPTY = 1000
"""Limit for empty frames and blocks in succession, which would cost time for no bytes."""
MAX_STEPS = 4096
"""Limit for the headers and bodies examined in one call of `parse`."""

RAW, RLE, COMPRESSED = range(3)
"""Types of blocks."""

FrameHeader = c.Struct(
    "magic" / c.Const(MAGIC, c.Int32ul),
    "descriptor"
    / c.BitStruct(
        "content_size_flag" / c.BitsInteger(2),
        "single_segment" / c.Flag,
        c.Padding(1),
        "reserved" / c.Flag,
        "checksum" / c.Flag,
        "dictionary_flag" / c.BitsInteger(2),
    ),
    "window" / c.If(lambda this: not this.descriptor.single_segment, c.Int8ul),
    "dictionary"
    / c.Switch(
        lambda this: this.descriptor.dictionary_flag, {1: c.Int8ul, 2: c.Int16ul, 3: c.Int32ul}
    ),
    "content_size"
    / c.Switch(
        lambda this: this.descriptor.content_size_flag,
        {
            0: c.If(lambda this: this.descriptor.single_segment, c.Int8ul),
            1: c.ExprAdapter(c.Int16ul, lambda size, _: size + 256, lambda size, _: size - 256),
            2: c.Int32ul,
            3: c.Int64ul,
        },
    ),
)
"""Header of a frame; `content_size`: bytes that the frame holds, None if it does not say."""

SkippableHeader = c.Struct("magic" / c.Int32ul, "size" / c.Int32ul)

BlockHeader = c.ByteSwapped(
    c.BitStruct("size" / c.BitsInteger(21), "type" / c.BitsInteger(2), "last" / c.Flag)
)
"""Header of a block; `size`: bytes that follow, or, for RLE, how often its one byte is repeated."""
BLOCK_HEADER_SIZE = 3
MAX_HEADER = 18
"""Limit for a FrameHeader, in bytes."""

STORED_HEADER = struct.Struct("<IBI")
"""Header of a stored frame, as `stored` writes it: magic, descriptor, content size."""
STORED_DESCRIPTOR = 0xA0
"""Descriptor for: single segment, content size in four bytes, no checksum."""


class CompressedError(StreamError):
    """A damaged compressed stream; `offset` counts compressed bytes, not those of their content."""

    def __str__(self) -> str:
        return f"offset {self.offset:#x} of the compressed stream: {self.message}"


@dataclass(frozen=True)
class Frame:
    """A whole frame: bytes `start` to `end` of the view, which hold `content_size` bytes.

    `offset`: position of the frame in the compressed stream. `stored`: True if the frame has raw
    blocks alone, which `join_stored` copies without decompression.
    """

    start: int
    end: int
    offset: int
    content_size: int
    stored: bool


@dataclass(frozen=True)
class Piece:
    """The next part of a frame that is too large to wait for, or whose size is not known.

    `start`, `end`: in the view; `offset`: in the compressed stream; `last`: the frame ends with
    this part.
    """

    start: int
    end: int
    offset: int
    last: bool


def is_compressed(head: bytes | memoryview) -> bool:
    """Return whether a stream that begins with `head` consists of zstd frames."""
    magic = int.from_bytes(head[:4], "little") if len(head) >= 4 else 0
    return magic == MAGIC or magic in SKIPPABLE_MAGICS


def window_size(head: bytes) -> int:
    """Return the window of a frame that begins with `head`, in bytes; 0 if it is not a frame."""
    try:
        header = FrameHeader.parse(head[:MAX_HEADER])
    except c.ConstructError:
        return 0
    if header.window is None:
        return int(header.content_size)
    exponent, mantissa = header.window >> 3, header.window & 7
    base = 1 << 10 + int(exponent)
    return base + base // 8 * int(mantissa)


def compressed_bound(content_size: int) -> int:
    """Return an upper bound for the bytes that any usual encoder makes of `content_size` bytes."""
    return content_size + content_size // 64 + 1024


class FrameWalker:
    """Reader that finds the frames of a compressed stream, from its first byte on."""

    def __init__(self, max_content: int) -> None:
        """Wait for whole frames of at most `max_content` bytes; return larger ones in pieces."""
        self._max_content = max_content
        self._offset = 0
        self._position = 0
        self._waiting = 0
        self._step: Callable[[Cursor], list[Frame | Piece]] = self._header
        self._content_size: int | None = None
        self._checksum = False
        self._last_block = False
        self._stored = True
        self._left = 0
        self._empty = 0
        self.more = False
        """True if the last `parse` stopped before the end of its view."""
        self.error: CompressedError | None = None

    @property
    def most(self) -> int:
        """Return how many bytes a caller must be able to present at once."""
        return compressed_bound(self._max_content)

    @property
    def between_headers(self) -> bool:
        """Return whether only whole frames were found; bytes that wait may not be a frame."""
        return self._step == self._header

    @property
    def between_frames(self) -> bool:
        """Return whether the stream may end here."""
        return self._step == self._header and not self._waiting

    def parse(self, view: memoryview) -> tuple[list[Frame | Piece], int]:
        """Return the frames and pieces in `view`, and how many of its bytes were used.

        The caller presents the rest again, followed by more bytes, or at once, while `more` is set.
        Frames before damage are returned, and then `error` is set.
        """
        cursor = Cursor(view, self._offset)
        cursor.position = self._position
        found: list[Frame | Piece] = []
        self.more = False
        try:
            for _ in range(MAX_STEPS):
                found += self._step(cursor)
            self.more = True
        except Incomplete:
            pass
        except CompressedError as error:
            # The traceback would keep the frames' local variables alive.
            self.error = error.with_traceback(None)
        except c.ConstructError:
            self.error = CompressedError("not a zstd frame", offset=cursor.offset)
        if self._is_too_long(cursor):
            self._content_size = None
        if self._content_size is None:
            found += self._piece(cursor, last=False)
        self._offset = cursor.offset_of(cursor.done)
        self._position = cursor.position - cursor.done
        self._waiting = len(view) - cursor.done
        return found, cursor.done

    def close(self) -> None:
        """Report that the input has ended.

        Raises CompressedError if that is inside a frame.
        """
        if not self.between_frames:
            offset = self._offset + self._waiting
            raise CompressedError("the stream ends within a zstd frame", offset=offset)

    def _is_too_long(self, cursor: Cursor) -> bool:
        size = self._content_size
        return size is not None and cursor.position - cursor.done > compressed_bound(size)

    def _piece(self, cursor: Cursor, *, last: bool) -> list[Frame | Piece]:
        if cursor.position == cursor.done:
            return []
        piece = Piece(cursor.done, cursor.position, cursor.offset_of(cursor.done), last)
        cursor.commit()
        return [piece]

    def pass_frame(self, size: int) -> None:
        """Skip the waiting frame of `size` bytes, which another reader has processed."""
        self._offset += size
        self._position = self._waiting = self._empty = 0
        self._step = self._header
        self._content_size = None

    # The steps of a frame.

    def _header(self, cursor: Cursor) -> list[Frame | Piece]:
        magic = cursor.view[cursor.position : cursor.position + 4]
        if len(magic) == 4 and int.from_bytes(magic, "little") in SKIPPABLE_MAGICS:
            self._count_empty(cursor, empty=True)
            self._left = cursor.take(SkippableHeader).size
            self._step = self._skip
            cursor.commit()
            return []
        size, self._checksum = _take_header(cursor)
        self._content_size = size if size is not None and size <= self._max_content else None
        self._stored = not self._checksum
        self._step = self._block
        return []

    def _block(self, cursor: Cursor) -> list[Frame | Piece]:
        size, kind, self._last_block = _read_block_header(cursor)
        if kind > COMPRESSED or size > MAX_BLOCK:
            raise CompressedError("not a block of a zstd frame", offset=cursor.offset)
        self._count_empty(cursor, empty=not size)
        cursor.position += BLOCK_HEADER_SIZE
        self._stored = self._stored and kind == RAW
        self._left = 1 if kind == RLE else size
        self._step = self._body
        return []

    def _body(self, cursor: Cursor) -> list[Frame | Piece]:
        self._pass(cursor)
        self._step = self._block
        if not self._last_block:
            return []
        if self._checksum:
            self._checksum = False
            self._left = 4
            self._step = self._body
            return []
        self._step = self._header
        if self._content_size is None:
            return self._piece(cursor, last=True)
        start, size = cursor.done, self._content_size
        cursor.commit()
        return [Frame(start, cursor.position, cursor.offset_of(start), size, self._stored)]

    def _count_empty(self, cursor: Cursor, *, empty: bool) -> None:
        self._empty = self._empty + 1 if empty else 0
        if self._empty > MAX_EMPTY:
            message = f"more than {MAX_EMPTY} empty frames or blocks one after the other"
            raise CompressedError(message, offset=cursor.offset)

    def _skip(self, cursor: Cursor) -> list[Frame | Piece]:
        try:
            self._pass(cursor)
        finally:
            cursor.commit()
        self._step = self._header
        return []

    def _pass(self, cursor: Cursor) -> None:
        """Skip what is left of this part, or raise Incomplete."""
        count = min(self._left, len(cursor.view) - cursor.position)
        cursor.position += count
        self._left -= count
        if self._left:
            raise Incomplete


def _take_header(cursor: Cursor) -> tuple[int | None, bool]:
    """Return the content size, and whether there is a checksum; fast for `stored` frames."""
    usual = cursor.view[cursor.position : cursor.position + STORED_HEADER.size]
    if len(usual) == STORED_HEADER.size:
        magic, descriptor, size = STORED_HEADER.unpack(usual)
        if (magic, descriptor) == (MAGIC, STORED_DESCRIPTOR):
            cursor.position += STORED_HEADER.size
            return size, False
    start = cursor.offset
    header = cursor.take(FrameHeader)
    if header.dictionary:
        raise CompressedError("the zstd frame needs a dictionary", offset=start)
    return header.content_size, header.descriptor.checksum


def _read_block_header(cursor: Cursor) -> tuple[int, int, bool]:
    """Return the three fields of a BlockHeader, faster than by the bitwise declaration."""
    raw = cursor.view[cursor.position : cursor.position + BLOCK_HEADER_SIZE]
    if len(raw) < BLOCK_HEADER_SIZE:
        raise Incomplete
    value = int.from_bytes(raw, "little")
    return value >> 3, value >> 1 & 3, bool(value & 1)
