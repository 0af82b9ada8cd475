"""Pass slots in shared memory from one writing process to one reading process.

Two eventfds in semaphore mode count the free and the filled slots, so either side can wait in
`poll` together with other descriptors. There is no buffer besides the ring.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

from .shared import Readiness, SharedFd

_HEADER = struct.Struct("<QII")
_HEADER_BYTES = 64


@dataclass(frozen=True)
class Slot:
    """A slot published by the writer; the two sides agree on the meaning of `kind` and `tag`."""

    kind: int
    tag: int
    view: memoryview


class Ring:
    """The shared part of a ring, from which processes make a RingWriter and a RingReader."""

    def __init__(
        self, slots: int, slot_size: int, memory: SharedFd, free: SharedFd, filled: SharedFd
    ) -> None:
        self.slots = slots
        self.slot_size = slot_size
        self.memory = memory
        self.free = free
        self.filled = filled

    @classmethod
    def create(cls, slots: int, slot_size: int) -> Ring:
        """Return a ring of `slots` slots that hold `slot_size` bytes each (rounded up to pages)."""
        slot_size = -(-slot_size // mmap.PAGESIZE) * mmap.PAGESIZE
        size = mmap.PAGESIZE + slots * slot_size
        if slots * _HEADER_BYTES > mmap.PAGESIZE:
            raise ValueError(f"a ring has at most {mmap.PAGESIZE // _HEADER_BYTES} slots")
        return cls(
            slots,
            slot_size,
            SharedFd.memory("vmferry-ring", size),
            SharedFd.event(slots, semaphore=True),
            SharedFd.event(0, semaphore=True),
        )

    def map(self) -> memoryview:
        """Map the shared memory: a page of slot headers, then the slots."""
        return memoryview(self.memory.map(mmap.PAGESIZE + self.slots * self.slot_size))

    def slot(self, memory: memoryview, number: int) -> memoryview:
        """Return the bytes of one slot."""
        start = mmap.PAGESIZE + number * self.slot_size
        return memory[start : start + self.slot_size]

    def close(self) -> None:
        """Close this process's descriptors of the ring."""
        for shared in (self.memory, self.free, self.filled):
            shared.close()


class RingWriter:
    """The writing end of a ring; one slot is open at a time."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._memory = ring.map()
        self._next = 0
        self.free_fd = ring.free.fileno()
        self._free = Readiness(self.free_fd)

    def try_acquire(self) -> memoryview | None:
        """Return the next slot, to fill and publish; None while all are full (see `free_fd`)."""
        if not self._free.now():
            return None
        os.eventfd_read(self.free_fd)
        return self._ring.slot(self._memory, self._next)

    def publish(self, length: int, kind: int, tag: int) -> None:
        """Pass the first `length` bytes of the acquired slot to the reader."""
        _HEADER.pack_into(self._memory, self._next * _HEADER_BYTES, length, kind, tag)
        self._next = (self._next + 1) % self._ring.slots
        os.eventfd_write(self._ring.filled.fileno(), 1)

    def close(self) -> None:
        """Unmap the ring, once it is no longer read."""
        self._memory.release()


class RingReader:
    """The reading end of a ring; one slot is in use at a time."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._memory = ring.map()
        self._next = 0
        self.filled_fd = ring.filled.fileno()
        self._filled = Readiness(self.filled_fd)

    def try_take(self) -> Slot | None:
        """Return the next slot, to release after use; None if none is full (see `filled_fd`)."""
        if not self._filled.now():
            return None
        os.eventfd_read(self.filled_fd)
        length, kind, tag = _HEADER.unpack_from(self._memory, self._next * _HEADER_BYTES)
        return Slot(kind, tag, self._ring.slot(self._memory, self._next)[:length])

    def release(self) -> None:
        """Return the slot to the writer."""
        self._next = (self._next + 1) % self._ring.slots
        os.eventfd_write(self._ring.free.fileno(), 1)
