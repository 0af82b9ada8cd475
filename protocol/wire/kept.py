"""Keep bytes until their structure is known, and payloads that may be too large for memory.

The reader keeps what follows RAM, because only the description at its end says where device
sections end. The caller chooses where these bytes are: `KeptInMemory` here, or files elsewhere,
since `protocol` does no I/O.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LARGE = 1 << 20
"""Bytes of the largest payload that is returned as `bytes` even if it is kept elsewhere."""

STEP = 1 << 20
"""Bytes of a large payload that are held in memory at once."""


class Kept(Protocol):
    """A growing sequence of kept bytes, readable at any position."""

    @property
    def size(self) -> int:
        """Return how many bytes are kept."""

    def append(self, data: memoryview) -> None:
        """Append `data`."""

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or as many as there are."""

    def part(self, start: int, size: int) -> Payload:
        """Return the payload of `size` bytes at `start`, all of which are kept."""


@dataclass(frozen=True)
class Part:
    """A payload that stays where it is kept and is read on demand."""

    kept: Kept
    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from position `start` of the payload on, or as many as it has."""
        return self.kept.read(self.start + start, max(0, min(size, self.size - start)))


Payload: TypeAlias = bytes | Part
"""The contents of a section: in memory, unless they are large and kept elsewhere."""


def pieces(payload: Payload) -> Iterator[bytes]:
    """Yield the bytes of a payload in order; those of a Part in pieces of at most STEP bytes."""
    if isinstance(payload, bytes):
        yield payload
        return
    for start in range(0, payload.size, STEP):
        yield payload.read(start, STEP)


def whole(payload: Payload) -> bytes:
    """Return all bytes of a payload."""
    return payload if isinstance(payload, bytes) else payload.read(0, payload.size)


def part_of(payload: Payload, start: int, size: int) -> Payload:
    """Return `size` bytes of a payload from `start` on, which it has; large parts stay kept."""
    if isinstance(payload, bytes) or size <= LARGE:
        return (
            whole(payload)[start : start + size]
            if isinstance(payload, bytes)
            else (payload.read(start, size))
        )
    return Part(payload.kept, payload.start + start, size)


def opened(payload: Payload) -> io.BufferedIOBase:
    """Return a file of the payload's bytes, at its start, without reading all of them."""
    if isinstance(payload, bytes):
        return io.BytesIO(payload)
    return io.BufferedReader(_PartFile(payload))


class _PartFile(io.RawIOBase):
    """Read-only file of the bytes of a Part."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, self._part.size)[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, target: WriteableBuffer, /) -> int:
        view = memoryview(target).cast("B")
        data = self._part.read(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class KeptInMemory:
    """Storage that keeps bytes in one buffer of memory."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def size(self) -> int:
        """Return how many bytes are kept."""
        return len(self._data)

    def append(self, data: memoryview) -> None:
        """Append `data`."""
        self._data += data

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or as many as there are."""
        return bytes(memoryview(self._data)[start : start + size])

    def part(self, start: int, size: int) -> Payload:
        """Return the payload of `size` bytes at `start`."""
        return self.read(start, size)
