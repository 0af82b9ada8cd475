"""Presents a part of a file or a pipe as a complete file."""

from __future__ import annotations

import io
from os import SEEK_CUR, SEEK_END, SEEK_SET
from typing import TYPE_CHECKING, BinaryIO, cast

from ...protocol.errors import StreamError
from .source import Source, left_in

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class _Window(io.RawIOBase):
    """The next `size` bytes of a source, which must not be read in any other way."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._size = size
        self._start = source.tell() if source.seekable() else None
        self._at = 0

    def readable(self) -> bool:
        """Return True: the window is readable."""
        return True

    def seekable(self) -> bool:
        """Return whether the source is seekable."""
        return self._start is not None

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        """Move to an offset, counted from the start of the window, and return it."""
        assert self._start is not None
        self._at = max(0, offset + {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self._size}[whence])
        self._source.seek(self._start + self._at)
        return self._at

    def readinto(self, target: WriteableBuffer, /) -> int:
        """Read the bytes that are available, at least one before the end. Raises StreamError."""
        view = memoryview(target).cast("B")[: max(0, self._size - self._at)]
        if not view:
            return 0
        count: int = self._source.readinto1(view)  # type: ignore[attr-defined]
        if not count:
            raise _too_long(self._at, self._size)
        self._at += count
        return count


def _too_long(there: int, size: int) -> StreamError:
    message = f"there are {there} bytes, not {size}: give a smaller --length"
    return StreamError(message, offset=there)


def window(source: BinaryIO, size: int) -> BinaryIO:
    """Return the next `size` bytes of a source as a file. Raises StreamError if there are fewer."""
    found = _Window(source, size)
    if not source.seekable():
        return cast(BinaryIO, Source(found))
    there = left_in(source).count
    if there < size:
        raise _too_long(there, size)
    return cast(BinaryIO, io.BufferedReader(found))
