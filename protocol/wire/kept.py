"""Bytes that are kept until it is known what they are, and payloads that may be too large for
memory.

The reader keeps what stands behind RAM, because only the description at its end tells where device
sections end. Where these bytes are is the caller's choice: `KeptInMemory` here; files elsewhere,
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
"""Bytes of the largest payload that is given as `bytes` wherever it was kept."""

STEP = 1 << 20
"""Bytes of a large payload that are held at once."""


class Kept(Protocol):
    """Bytes in the order in which they came, readable at any place."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def append(self, data: memoryview) -> None:
        """Put `data` behind all that is there."""

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or as many as there are."""

    def part(self, start: int, size: int) -> Payload:
        """Return the payload of `size` bytes at `start`, all of which are there."""


@dataclass(frozen=True)
class Part:
    """A payload that stays where it is kept, and is read when somebody asks for its bytes."""

    kept: Kept
    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` of the payload on, or as many as it has."""
        return self.kept.read(self.start + start, max(0, min(size, self.size - start)))


Payload: TypeAlias = bytes | Part
"""What a section holds: in memory, unless it is large and kept elsewhere."""


def pieces(payload: Payload) -> Iterator[bytes]:
    """Yield the bytes of a payload in order, at most STEP of them at once."""
    if isinstance(payload, bytes):
        yield payload
        return
    for start in range(0, payload.size, STEP):
        yield payload.read(start, STEP)


def whole(payload: Payload) -> bytes:
    """Return all bytes of a payload."""
    return payload if isinstance(payload, bytes) else payload.read(0, payload.size)


def part_of(payload: Payload, start: int, size: int) -> Payload:
    """Return `size` bytes of a payload from `start` on, which it has; large ones stay kept."""
    if isinstance(payload, bytes) or size <= LARGE:
        return (
            whole(payload)[start : start + size]
            if isinstance(payload, bytes)
            else (payload.read(start, size))
        )
    return Part(payload.kept, payload.start + start, size)


def opened(payload: Payload) -> io.BufferedIOBase:
    """Return a file of the payload's bytes, at its first one, without holding all of them."""
    if isinstance(payload, bytes):
        return io.BytesIO(payload)
    return io.BufferedReader(_PartFile(payload))


class _PartFile(io.RawIOBase):
    """The bytes of a Part as a file."""

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
    """Kept bytes in one buffer of memory."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self._data)

    def append(self, data: memoryview) -> None:
        """Put `data` behind all that is there."""
        self._data += data

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or as many as there are."""
        return bytes(memoryview(self._data)[start : start + size])

    def part(self, start: int, size: int) -> Payload:
        """Return the payload at `start`."""
        return self.read(start, size)
