"""Makes a stream seekable: copies it piece by piece into a sparse temporary file.

The file has no name, so that nothing remains of it after a crash. TMPDIR sets its folder.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from ...protocol.errors import StreamError
from ...transport.sparse import write_at
from ..console.failure import CommandError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE = 1 << 20
"""The number of bytes that are copied at once."""
_GRAIN = 4096
"""The size in bytes of a block that becomes a hole if it is all zeros."""


class SpoolError(CommandError):
    """Raised if there is no room for the temporary file; the message is one line."""


class Spool(io.RawIOBase):
    """A seekable copy of the rest of `source`, placed at the offsets from `start` on, after a hole.

    If `source` raises a StreamError, all bytes before it are kept, and reading past them raises
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
        """Copy the source and return the offset after the last byte."""
        buffer = bytearray(_PIECE)
        # A single read per call keeps the bytes that arrive before a failure.
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
        """Write the piece except for its zero blocks."""
        whole = len(piece) // _GRAIN * _GRAIN
        grains = np.frombuffer(piece[:whole], np.uint8).reshape(-1, _GRAIN)
        bounds = np.flatnonzero(np.diff(grains.any(axis=1), prepend=False, append=False))
        for first, last in bounds.reshape(-1, 2).tolist():
            write_at(self._fd, piece[first * _GRAIN : last * _GRAIN], place + first * _GRAIN)
        write_at(self._fd, piece[whole:], place + whole)

    def readable(self) -> bool:
        """Return True: the copy is readable."""
        return True

    def seekable(self) -> bool:
        """Return True: the copy is seekable."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to an offset, which may be past the end, and return it. Raises OSError."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the offset that is read next."""
        return self._position

    def readinto(self, target: WriteableBuffer, /) -> int:
        """Read the available bytes; at the end, read none or raise the StreamError that the source
        ended with.
        """
        view = memoryview(target).cast("B")
        count = os.preadv(self._fd, [view], self._position) if len(view) else 0
        if not count and len(view) and self._failure is not None:
            raise self._failure
        self._position += count
        return count

    def close(self) -> None:
        """Close and so delete the temporary file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()


def spooled(source: BinaryIO, start: int = 0) -> BinaryIO:
    """Return the rest of `source` as a seekable file, placed at the offsets from `start` on."""
    return cast(BinaryIO, io.BufferedReader(Spool(source, start)))
