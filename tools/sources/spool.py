"""A stream that comes piece by piece, made one that can be sought in: a sparse temporary file.

It has no name, so that nothing is left of it, whatever happens. It stands where TMPDIR says.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from ...protocol.errors import StreamError
from ..console.failure import CommandError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE = 1 << 20
"""Bytes that are copied at once."""
_GRAIN = 4096
"""Bytes that become a hole where they are all zero."""


class SpoolError(CommandError):
    """There is no room for the temporary file; one line."""


class Spool(io.RawIOBase):
    """What is left in `source`, at the places from `start` on; before that there is nothing.

    Where `source` fails with a StreamError, all before that is kept, and reading behind it raises
    that error. Raises SpoolError, OSError.
    """

    def __init__(self, source: BinaryIO, start: int = 0) -> None:
        self.origin = source
        self._fd = -1
        self._position = start
        self._failure: StreamError | None = None
        with tempfile.TemporaryFile(buffering=0) as file:
            self._fd = os.dup(file.fileno())
        try:
            self._end = self._copy(source, start)
            os.ftruncate(self._fd, self._end)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            reason, folder = os.strerror(error.errno), tempfile.gettempdir()
            raise SpoolError(
                "no room for the temporary copy of a stream that is read at any place: "
                f"{folder}: {reason}; decompress the file first, or name a folder with more room "
                "in TMPDIR"
            ) from None

    def _copy(self, source: BinaryIO, place: int) -> int:
        """The place behind the last byte."""
        buffer = bytearray(_PIECE)
        # One read at a time: what came before a failure is kept.
        read = getattr(source, "readinto1", None) or source.readinto  # type: ignore[attr-defined]
        while True:
            try:
                count = read(buffer)
            except StreamError as error:
                self._failure = error
                return place
            if not count:
                return place
            self._write(memoryview(buffer)[:count], place)
            place += count

    def _write(self, piece: memoryview, place: int) -> None:
        """All but what is zero."""
        whole = len(piece) // _GRAIN * _GRAIN
        grains = np.frombuffer(piece[:whole], np.uint8).reshape(-1, _GRAIN)
        bounds = np.flatnonzero(np.diff(grains.any(axis=1), prepend=False, append=False))
        for first, last in bounds.reshape(-1, 2).tolist():
            self._put(piece[first * _GRAIN : last * _GRAIN], place + first * _GRAIN)
        self._put(piece[whole:], place + whole)

    def _put(self, piece: memoryview, place: int) -> None:
        while piece:
            count = os.pwrite(self._fd, piece, place)
            piece, place = piece[count:], place + count

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """To any place, also behind the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The place that is read next."""
        return self._position

    def readinto(self, target: WriteableBuffer, /) -> int:
        """What is there; behind the end nothing, or the StreamError that the source ended in."""
        view = memoryview(target).cast("B")
        count = os.preadv(self._fd, [view], self._position) if len(view) else 0
        if not count and len(view) and self._failure is not None:
            raise self._failure
        self._position += count
        return count

    def close(self) -> None:
        """Forget the copy."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()


def spooled(source: BinaryIO, start: int = 0) -> BinaryIO:
    """What is left in `source`, from the place `start` on, as a file that can be sought in."""
    return cast(BinaryIO, io.BufferedReader(Spool(source, start)))
