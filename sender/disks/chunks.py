"""Find the chunks of disks that changed: by the guest's marks, or by digests of what was sent.

Law 1 holds for disks, too: a mark is removed before its chunk is read, and a digest is that of the
copy that was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from ...guest.disks.image import Disk
from ...guest.disks.marks import DiskMarks, chunks_of

_ZERO = b""
"""Stands for the digest of a chunk of zeros, which is not read where it is a hole."""


class ChunkTracker(Protocol):
    """The finder of changed chunks, of all disks."""

    def take(self, disk: int) -> npt.NDArray[np.bool_]:
        """Return which chunks may have changed since the last call; in the first one, all."""

    def changed(self, disk: int, chunk: int, data: memoryview | None) -> bool:
        """Return whether this copy of a chunk (None: zeros) has to be sent, and note that it is."""


class MarkedChunks:
    """Tracker by marks that the guest sets; without marks, for a guest that stands still."""

    def __init__(self, disks: Sequence[Disk], marks: DiskMarks | None) -> None:
        self._counts = [chunks_of(disk.size or 0) for disk in disks]
        self._marks = marks
        self._seen = [False] * len(disks)

    def take(self, disk: int) -> npt.NDArray[np.bool_]:
        """Return the marked chunks; in the first call, all."""
        marked = np.zeros(self._counts[disk], np.bool_)
        if self._marks is not None:
            marked = self._marks.take(disk)
        if not self._seen[disk]:
            self._seen[disk] = True
            marked[:] = True
        return marked

    def changed(self, disk: int, chunk: int, data: memoryview | None) -> bool:  # noqa: ARG002
        """Return True: a marked chunk was written."""
        return True


class DigestedChunks:
    """Tracker by digests, for a guest of whose writes nobody tells: each round reads all disks."""

    def __init__(self, disks: Sequence[Disk]) -> None:
        self._digests: list[list[bytes | None]] = [
            [None] * chunks_of(disk.size or 0) for disk in disks
        ]

    def take(self, disk: int) -> npt.NDArray[np.bool_]:
        """Return all chunks."""
        return np.ones(len(self._digests[disk]), np.bool_)

    def changed(self, disk: int, chunk: int, data: memoryview | None) -> bool:
        """Return whether the digest of this copy is another one than that of the last."""
        digest = _ZERO if data is None else xxh3_128_digest(data)
        changed = self._digests[disk][chunk] != digest
        self._digests[disk][chunk] = digest
        return changed
