"""Keep bytes in memory while they are few, and in a temporary file beyond that.

The file has no name, so nothing is left behind; TMPDIR sets its folder.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass

from ..protocol.errors import VmferryError
from ..protocol.wire.kept import LARGE, Part, Payload

IN_MEMORY = 16 << 20
"""Limit for the bytes that are kept in memory."""


class FileError(VmferryError, OSError):
    """A file that cannot be made or written; `filename` says which one, or what is in it."""

    @property
    def line(self) -> str:
        """Return the error as one line."""
        return f"{self.filename}: {self.strerror}"


class Spill:
    """Storage for kept bytes (see `protocol.wire.kept`) that moves to a file. Raises FileError."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._fd: int | None = None
        self._size = 0

    @property
    def size(self) -> int:
        """Return how many bytes are kept."""
        return self._size

    def append(self, data: memoryview) -> None:
        """Append `data`."""
        if self._fd is None and self._size + len(data) <= IN_MEMORY:
            self._data += data
        else:
            self._write(data)
        self._size += len(data)

    def _write(self, data: memoryview) -> None:
        try:
            if self._fd is None:
                with tempfile.TemporaryFile(prefix="vmferry-", buffering=0) as file:
                    self._fd = os.dup(file.fileno())
                # The file is closed with the last payload that refers to it.
                weakref.finalize(self, os.close, self._fd)
                self._put(self._fd, memoryview(self._data))
                self._data = bytearray()
            self._put(self._fd, data)
        except OSError as error:
            raise FileError(error.errno, error.strerror, tempfile.gettempdir()) from None

    @staticmethod
    def _put(fd: int, data: memoryview) -> None:
        while data:
            data = data[os.write(fd, data) :]

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or as many as there are."""
        if self._fd is None:
            return bytes(memoryview(self._data)[start : start + size])
        return os.pread(self._fd, max(0, size), start)

    def fileno(self) -> int:
        """Return the descriptor of the temporary file, which exists if there are large payloads."""
        assert self._fd is not None
        return self._fd

    def part(self, start: int, size: int) -> Payload:
        """Return the payload of `size` bytes at `start`; a large one stays in the file."""
        if self._fd is None or size <= LARGE:
            return self.read(start, size)
        return Part(self, start, size)


class SpillFile:
    """Reader of the temporary file of another process's Spill, whose descriptor it owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    @property
    def size(self) -> int:
        """Return how many bytes are in the file."""
        return os.fstat(self._fd).st_size

    def append(self, data: memoryview) -> None:
        """Raise NotImplementedError: the other process writes the file."""
        raise NotImplementedError

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or as many as there are."""
        return os.pread(self._fd, max(0, size), start)

    def part(self, start: int, size: int) -> Payload:
        """Return the payload of `size` bytes at `start`."""
        return Part(self, start, size)


@dataclass(frozen=True)
class SentFile:
    """Placeholder for the file of a payload in a message between processes.

    `number`: which file.
    """

    number: int

    @property
    def size(self) -> int:
        """Raise NotImplementedError: the size is not known here."""
        raise NotImplementedError

    def append(self, data: memoryview) -> None:
        """Raise NotImplementedError: there are no bytes here."""
        raise NotImplementedError

    def read(self, start: int, size: int) -> bytes:
        """Raise NotImplementedError: there are no bytes here."""
        raise NotImplementedError

    def part(self, start: int, size: int) -> Payload:
        """Raise NotImplementedError: there are no bytes here."""
        raise NotImplementedError
