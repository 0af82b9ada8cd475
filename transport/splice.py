"""Move bytes from a socket into a file by a pipe, without a copy of them in this process.

A page of the file that does not exist yet is made of what was moved. A mapping would first have the
kernel fill it with zeros.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from .pieces import drop_front

_SIZE = 1 << 20
"""Wanted size of the pipe in bytes: the most that the kernel allows by default."""


class Splice:
    """A pipe, in which bytes are between `take` and the end of `put` or `read_into`."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        # A user with many pipes may have small ones only.
        with suppress(PermissionError):
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _SIZE)
        self.held = 0
        """The number of bytes that are in the pipe."""

    def take(self, fd: int, count: int) -> int:
        """Take at most `count` of the bytes that have arrived at a socket; return how many.

        Return 0 at its end. Raises OSError.
        """
        self.held = os.splice(fd, self._writer, count)
        return self.held

    def put(self, fd: int, place: int) -> None:
        """Write what was taken to a file, from the offset `place` on.

        Raises OSError; EINVAL means that the file, as one of huge pages, takes no writes.
        """
        while self.held:
            count = os.splice(self._reader, fd, self.held, offset_dst=place)
            self.held, place = self.held - count, place + count

    def read_into(self, pieces: list[memoryview]) -> int:
        """Read what was taken, and not put, into the first bytes of these pieces in turn.

        Return how many bytes that were; the pieces have room for them.
        """
        size, left = self.held, list(pieces)
        while self.held:
            count = os.readv(self._reader, left)
            self.held -= count
            drop_front(left, count)
        return size

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._reader)
        os.close(self._writer)
