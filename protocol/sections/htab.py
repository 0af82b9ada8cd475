"""Read and write the iterative section `spapr/htab`: the hashed page table of a pseries guest.

Each piece begins with a be32: the table's size as a power of two in the first piece, 0xffffffff if
there is no table, 0 if chunks follow, up to an empty one. Source: captured streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import construct as c  # type: ignore[import-untyped]

from ..errors import StreamError
from ..wire.cursor import Cursor
from ..wire.marks import SectionType

SECTION_NAME = "spapr/htab"
SECTION_VERSION = 1
ENTRY_SIZE = 16
MAX_SHIFT = 46

Header = c.Int32sb
Chunk = c.Struct("first" / c.Int32ub, "valid" / c.Int16ub, "invalid" / c.Int16ub)
"""Header for entries from `first` on: `valid` ones, which follow, then `invalid` empty ones."""


@dataclass(frozen=True)
class HtabHeader:
    """The beginning of a piece.

    `shift`: the table has 2**shift bytes; -1: there is no table; 0: chunks follow.
    """

    offset: int
    shift: int


@dataclass(frozen=True)
class HtabChunk:
    """Entries (16 bytes each) from number `first` on, with `invalid` empty ones after them.

    A chunk with neither ends this piece.
    """

    offset: int
    first: int
    invalid: int
    entries: bytes = field(repr=False)


HtabEvent: TypeAlias = HtabHeader | HtabChunk


class HtabReader:
    """Reader of one `spapr/htab` section, over all its pieces."""

    def __init__(self) -> None:
        self.at_end = False
        self._begun = False
        self._slots = 0
        self._chunk: tuple[int, int, int] | None = None
        self._size = 0
        self._entries = bytearray()

    def begin(self, kind: SectionType) -> None:  # noqa: ARG002
        """Begin a piece of the section."""
        self.at_end = self._begun = False

    def read(self, cursor: Cursor) -> list[HtabEvent]:
        """Return the next header or chunk; nothing while the entries of a chunk are incomplete."""
        if self._chunk is not None:
            chunk = HtabChunk(*self._chunk, cursor.gather(self._entries, self._size))
            self._chunk = None
            return [chunk]
        return self._read_chunk(cursor) if self._begun else self._read_header(cursor)

    def _read_header(self, cursor: Cursor) -> list[HtabEvent]:
        offset, shift = cursor.offset, cursor.take(Header)
        if shift > MAX_SHIFT or shift < -1 or 0 < shift < 4:
            raise _error(f"a table of 2**{shift} bytes", offset)
        if shift == 0 and not self._slots:
            raise _error("entries of a table that was not announced", offset)
        self._begun, self.at_end = True, shift != 0
        if shift > 0:
            self._slots = (1 << shift) // ENTRY_SIZE
        return [HtabHeader(offset, shift)]

    def _read_chunk(self, cursor: Cursor) -> list[HtabEvent]:
        offset, chunk = cursor.offset, cursor.take(Chunk)
        if chunk.first + chunk.valid + chunk.invalid > self._slots:
            raise _error(f"entries from {chunk.first} on, outside the table", offset)
        if not chunk.valid:
            self.at_end = not chunk.first and not chunk.invalid
            return [HtabChunk(offset, chunk.first, chunk.invalid, b"")]
        self._chunk = (offset, chunk.first, chunk.invalid)
        self._size = chunk.valid * ENTRY_SIZE
        return []


def _error(message: str, offset: int) -> StreamError:
    return StreamError(message, offset=offset, section=SECTION_NAME)


def write_header(event: HtabHeader) -> bytes:
    """Return the bytes of the beginning of a piece."""
    return bytes(Header.build(event.shift))


def write_chunk(event: HtabChunk) -> bytes:
    """Return the bytes of a chunk."""
    valid = len(event.entries) // ENTRY_SIZE
    values = {"first": event.first, "valid": valid, "invalid": event.invalid}
    return bytes(Chunk.build(values) + event.entries)
