"""Mark the chunks of disks that a guest writes, in memory that it shares with a migration.

A chunk is the unit in which disks travel. The guest writes first and marks then; the migration
removes the mark first and reads then. So whatever it reads too early comes again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...protocol.wire.block import BLOCK_SIZE
from ...transport.shared import SharedFd


def chunks_of(size: int) -> int:
    """Return the number of chunks of a disk of `size` bytes; the last one may be shorter."""
    return -(-size // BLOCK_SIZE)


class DiskMarks:
    """Marks of the chunks of disks with these sizes in bytes; it can be passed to processes."""

    def __init__(self, sizes: Sequence[int], memory: SharedFd) -> None:
        self._sizes = tuple(sizes)
        self.memory = memory
        """The shared memory, of one byte for each chunk."""
        counts = [chunks_of(size) for size in sizes]
        shared = np.frombuffer(memory.map(max(1, sum(counts))), np.uint8)
        self._marks = np.split(shared[: sum(counts)], np.cumsum(counts)[:-1])

    @classmethod
    def create(cls, sizes: Sequence[int]) -> DiskMarks:
        """Return marks in new shared memory, none of which is set."""
        count = sum(map(chunks_of, sizes))
        return cls(sizes, SharedFd.memory("vmferry-disk-marks", max(1, count)))

    @classmethod
    def attach(cls, sizes: Sequence[int], fd: int) -> DiskMarks:
        """Return the marks in the shared memory `fd`, which belongs to the result."""
        return cls(sizes, SharedFd(fd))

    def duplicate(self) -> int:
        """Return a duplicate of the descriptor, to be passed on."""
        return os.dup(self.memory.fileno())

    def __reduce__(self) -> tuple[type[DiskMarks], tuple[tuple[int, ...], SharedFd]]:
        return DiskMarks, (self._sizes, self.memory)

    def written(self, disk: int, start: int, end: int) -> None:
        """Mark what holds the bytes from `start` to `end`, after they were written to the disk."""
        self._marks[disk][start // BLOCK_SIZE : chunks_of(end)] = 1

    def take(self, disk: int) -> npt.NDArray[np.bool_]:
        """Return which chunks are marked, and remove these marks."""
        taken: npt.NDArray[np.bool_] = self._marks[disk] != 0
        self._marks[disk][taken] = 0
        return taken

    def pending(self) -> int:
        """Return the size of the marked chunks in bytes."""
        return sum(int(np.count_nonzero(marks)) for marks in self._marks) * BLOCK_SIZE

    def close(self) -> None:
        """Close the descriptor; the memory stays mapped where it is."""
        self.memory.close()
