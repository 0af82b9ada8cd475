"""Read declared structures from the bytes at hand, or report that more bytes are needed.

A structure has a limit of bytes; the cursor never waits for more than that.
"""

from __future__ import annotations

import io
from typing import Any

import construct as c  # type: ignore[import-untyped]
import numpy as np

from ..errors import StreamError

MAX_STRUCTURE = 1024
"""Limit for a structure with one name in it, in bytes; more than any needs."""


class Incomplete(Exception):  # noqa: N818 - not an error: the rest has not arrived
    """The bytes at hand end inside a structure."""


class Cursor:
    """Reader that moves through `view`, whose first byte is at `offset` in the stream."""

    def __init__(self, view: memoryview, offset: int) -> None:
        self.view = view
        self.data = np.frombuffer(view, np.uint8)
        self.position = 0
        self.done = 0
        self._offset = offset

    @property
    def offset(self) -> int:
        """Return the position in the stream."""
        return self._offset + self.position

    def offset_of(self, position: int) -> int:
        """Return the position in the stream of a position in the view."""
        return self._offset + position

    def commit(self) -> None:
        """Mark everything up to here as used; the rest has to be presented again."""
        self.done = self.position

    def peek(self, ahead: int = 0) -> int:
        """Return the next byte, or the one `ahead` bytes after it, without moving.

        Raises Incomplete.
        """
        if self.position + ahead >= len(self.view):
            raise Incomplete
        return self.view[self.position + ahead]

    def peek_u64(self) -> int:
        """Return the next be64 without moving. Raises Incomplete."""
        piece = self.view[self.position : self.position + 8]
        if len(piece) < 8:
            raise Incomplete
        return int.from_bytes(piece, "big")

    def take(self, declaration: c.Construct, limit: int = MAX_STRUCTURE) -> Any:
        """Read the next structure.

        Raises Incomplete if more bytes are needed, StreamError if it does not end within `limit`
        bytes.
        """
        piece = io.BytesIO(self.view[self.position : self.position + limit])
        try:
            value = declaration.parse_stream(piece)
        except c.StreamError:
            if len(self.view) - self.position < limit:
                raise Incomplete from None
            message = f"a structure is longer than {limit} bytes"
            raise StreamError(message, offset=self.offset) from None
        self.position += piece.tell()
        return value

    def absorb(self, into: bytearray, end: int) -> None:
        """Append everything up to the position `end` to `into`, and mark it as used."""
        end = min(end, len(self.view))
        if end > self.position:
            into += self.view[self.position : end]
            self.position = end
        self.commit()

    def gather(self, into: bytearray, size: int) -> bytes:
        """Return the next `size` bytes, collected in `into`.

        Raises Incomplete until all have arrived; `into` keeps those that are here.
        """
        self.absorb(into, self.position + size - len(into))
        if len(into) < size:
            raise Incomplete
        data = bytes(into)
        into.clear()
        return data


def decode_name(raw: bytes) -> str | None:
    """Return a name from the wire as text; None if it is empty, not UTF-8 or not printable."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return None
    return name if name and name.isprintable() else None
