"""A place in the bytes at hand: takes declared structures from them, or tells that more is needed.

Nothing longer than its limit is ever waited for.
"""

from __future__ import annotations

import io
from typing import Any

import construct as c  # type: ignore[import-untyped]
import numpy as np

from ..errors import StreamError

MAX_STRUCTURE = 1024
"""Longer than any structure with one name in it."""


class Incomplete(Exception):  # noqa: N818 - not an error: the rest has not arrived
    """The bytes at hand end inside a structure."""


class Cursor:
    """Walks `view`, whose first byte stands at `offset` in the stream."""

    def __init__(self, view: memoryview, offset: int) -> None:
        self.view = view
        self.data = np.frombuffer(view, np.uint8)
        self.position = 0
        self.done = 0
        self._offset = offset

    @property
    def offset(self) -> int:
        """The position in the stream."""
        return self._offset + self.position

    def offset_of(self, position: int) -> int:
        """Where in the stream a position in the view is."""
        return self._offset + position

    def commit(self) -> None:
        """All up to here was dealt with; what is not must be presented again."""
        self.done = self.position

    def peek(self, ahead: int = 0) -> int:
        """The next byte, or one `ahead` of it."""
        if self.position + ahead >= len(self.view):
            raise Incomplete
        return self.view[self.position + ahead]

    def peek_u64(self) -> int:
        """The next be64."""
        piece = self.view[self.position : self.position + 8]
        if len(piece) < 8:
            raise Incomplete
        return int.from_bytes(piece, "big")

    def take(self, declaration: c.Construct, limit: int = MAX_STRUCTURE) -> Any:
        """The next structure. Raises StreamError when it does not end within `limit` bytes."""
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
        """Append everything up to the position `end` to `into`, for good."""
        end = min(end, len(self.view))
        if end > self.position:
            into += self.view[self.position : end]
            self.position = end
        self.commit()

    def gather(self, into: bytearray, size: int) -> bytes:
        """The next `size` bytes, however they come: `into` keeps what is here until all are."""
        self.absorb(into, self.position + size - len(into))
        if len(into) < size:
            raise Incomplete
        data = bytes(into)
        into.clear()
        return data


def decode_name(raw: bytes) -> str | None:
    """A name from the wire; None where it is empty, not UTF-8 or not printable."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return None
    return name if name and name.isprintable() else None
