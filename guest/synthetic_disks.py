"""Write the disks of a synthetic guest, and find what is damaged on them.

The first pages of each image are written like RAM (`synthetic_memory`), over and over, and each
write is marked for a migration. The tables of sequence numbers are device state.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import zstandard

from .disks.marks import DiskMarks
from .errors import GuestError
from .synthetic_memory import BATCH, PAGE_SIZE, BadPage, Memory

HOT = 0.1
"""Part of a disk that is written over and over."""
MAX_HOT = 1 << 30
"""Largest size in bytes of that part, for which a table is kept."""
_HEAD = struct.Struct("<QQ")
"""Bytes written per second, and pages written so far; the tables follow in one zstd frame."""


class SyntheticDisks:
    """The disks of the guest in this process: images of `sizes` bytes, written at `rate`."""

    def __init__(self, fds: Sequence[int], sizes: Sequence[int], rate: int, seed: int) -> None:
        self._sizes = tuple(sizes)
        self.rate = rate
        self._written = 0
        self._until = time.monotonic()
        self._marks: DiskMarks | None = None
        hot = [_hot_pages(size) * PAGE_SIZE for size in sizes]
        # The whole page cache of an image is shared with whoever reads it.
        images = [
            np.frombuffer(mmap.mmap(fd, size), np.uint8) for fd, size in zip(fds, hot, strict=True)
        ]
        self._hot = [
            Memory(image, None, seed, name=f"disk{number}") for number, image in enumerate(images)
        ]
        for fd in fds:
            # The open file goes on to lock the image.
            os.set_inheritable(fd, False)

    def mark(self, fd: int) -> None:
        """Mark what is written from now on, in the shared memory `fd`."""
        self._marks = DiskMarks.attach(self._sizes, fd)

    def begin(self) -> None:
        """Let the time count from now on: the guest stood still."""
        self._until = time.monotonic()

    def write_due(self, speed: float) -> None:
        """Write pages of all disks in turn, as many as are due at this part of the rate."""
        now, rate = time.monotonic(), self.rate * speed
        if not self._hot or not rate:
            return
        due = min(int((now - self._until) * rate / PAGE_SIZE), BATCH)
        if due:
            self._until = now
            number = self._written // BATCH % len(self._hot)
            self._write(number, due)

    def _write(self, number: int, count: int) -> None:
        memory = self._hot[number]
        start = self._written % len(memory.table)
        numbers = np.arange(start, min(start + count, len(memory.table)))
        memory.write(numbers)
        if self._marks is not None:
            # Law 1: written first, then marked.
            end = (int(numbers[-1]) + 1) * PAGE_SIZE
            self._marks.written(number, start * PAGE_SIZE, end)
        self._written += count

    def save(self) -> bytes:
        """Return the state of the disks."""
        tables = [memory.table for memory in self._hot]
        data = np.concatenate(tables).astype("<u4").tobytes() if tables else b""
        return _HEAD.pack(self.rate, self._written) + zstandard.ZstdCompressor(1).compress(data)

    def load(self, state: bytes) -> None:
        """Take over what `save` returned at the source. Raises GuestError."""
        sizes = [len(memory.table) for memory in self._hot]
        if len(state) < _HEAD.size:
            raise GuestError(f"synthetic: state of disks of {len(state)} bytes")
        self.rate, self._written = _HEAD.unpack_from(state)
        table = _table(state[_HEAD.size :], sum(sizes))
        for memory, part in zip(self._hot, np.split(table, np.cumsum(sizes)[:-1]), strict=True):
            memory.table[:] = part

    def check_all(self) -> list[BadPage]:
        """Return the pages of all disks that are not as the guest has written them."""
        written = [(memory, np.flatnonzero(memory.table)) for memory in self._hot]
        return [bad for memory, numbers in written for bad in memory.check(numbers)]


def _hot_pages(size: int) -> int:
    return max(1, int(min(size * HOT, MAX_HOT)) // PAGE_SIZE)


def _table(frame: bytes, count: int) -> npt.NDArray[np.uint32]:
    """Return the `count` sequence numbers in a frame, which may be damaged or hostile."""
    try:
        if zstandard.frame_content_size(frame) == 4 * count:
            data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
            return np.frombuffer(data, "<u4").astype(np.uint32)
    except zstandard.ZstdError as error:
        raise GuestError(f"synthetic: the state of the disks is damaged: {error}") from error
    raise GuestError("synthetic: the images here have not the sizes that the disks had")
