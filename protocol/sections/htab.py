"""Read and write the iterative section `spapr/htab`, declared in `wire.htab`."""

from __future__ import annotations

from ..errors import StreamError
from ..section_events import HtabChunk, HtabEvent, HtabHeader
from ..wire.cursor import Cursor
from ..wire.htab import ENTRY_SIZE, MAX_SHIFT, SECTION_NAME, Chunk, Header
from ..wire.marks import SectionType


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
