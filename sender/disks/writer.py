"""Write chunks of disks as records of the `block` section, into the slots of a sink.

A chunk is read into its place in the slot, and looked at there. Holes are not read.
"""

from __future__ import annotations

import os

import numpy as np

from ...guest.disks.image import Disk
from ...guest.zero import zero_mask
from ...protocol.errors import VmferryError
from ...protocol.section_events import DiskBlock, DiskProgress, EndOfDisks
from ...protocol.sections.block import write_block, write_data_head, write_end, write_progress
from ...protocol.wire.block import BLOCK_SIZE, SECTOR_BITS
from ...protocol.wire.stream import section_footer, section_part
from ...transport.sparse import next_data
from ..sinks import Sink

SLOT_SIZE = BLOCK_SIZE + (64 << 10)
"""Bytes of a slot: a chunk, and thousands of records without data."""


class ImageError(VmferryError):
    """An image that cannot be read; the message is one line."""


class ChunkWriter:
    """The writer of one migration's chunks; each slot becomes a whole SECTION_PART.

    With `zero_blocks`, a chunk of zeros is a record without data.
    """

    def __init__(self, sink: Sink, section_id: int, *, zero_blocks: bool) -> None:
        self._sink = sink
        self._head = section_part(section_id)
        self._tail = write_end(EndOfDisks(0)) + section_footer(section_id)
        self._zero_blocks = zero_blocks
        self._view: memoryview | None = None
        self._used = 0
        self.check = sink.check

    def read(self, disk: Disk, start: int) -> memoryview | None:
        """Return a copy of the chunk at `start`, with zeros behind the end of the disk.

        Return None for zeros. The copy is valid until the next call. Raises ImageError.
        """
        assert disk.size is not None
        size = min(BLOCK_SIZE, disk.size - start)
        try:
            data = next_data(disk.fd, start)
            if data is None or data >= start + size:
                _check_present(disk, start + size)
                return None
            copy = self._room(len(self._data_head(disk, start)) + BLOCK_SIZE)[-BLOCK_SIZE:]
            _read_whole(disk, start, copy[:size])
        except OSError as error:
            raise ImageError(f"{disk.path}: {error.strerror} at offset {start}") from error
        copy[size:] = bytes(BLOCK_SIZE - size)
        return None if zero_mask(np.frombuffer(copy, np.uint8).reshape(1, -1)).all() else copy

    def send(self, disk: Disk, start: int, copy: memoryview | None) -> int:
        """Send what `read` has returned last, and return the size of the record."""
        if copy is None and self._zero_blocks:
            return self._put(write_block(DiskBlock(0, disk.name, start >> SECTOR_BITS, None)))
        head = self._data_head(disk, start)
        room = self._room(len(head) + BLOCK_SIZE)
        room[: len(head)] = head
        if copy is None:
            room[len(head) :] = bytes(BLOCK_SIZE)
        self._used += len(room)
        return len(room)

    def progress(self, percent: int) -> None:
        """Send the share of the disks that was sent."""
        self._put(write_progress(DiskProgress(0, percent)))

    def end_round(self, number: int) -> None:
        """Publish what is left, and end the round."""
        self._publish()
        self._sink.end_round(number)

    @staticmethod
    def _data_head(disk: Disk, start: int) -> bytes:
        return write_data_head(disk.name, start >> SECTOR_BITS)

    def _put(self, record: bytes) -> int:
        self._room(len(record))[:] = record
        self._used += len(record)
        return len(record)

    def _room(self, size: int) -> memoryview:
        """Return the place of the next `size` bytes, in a new slot if they do not fit."""
        if self._view is not None and self._used + size + len(self._tail) > SLOT_SIZE:
            self._publish()
        if self._view is None:
            self._view = self._sink.acquire()
            self._view[: len(self._head)] = self._head
            self._used = len(self._head)
        return self._view[self._used : self._used + size]

    def _publish(self) -> None:
        if self._view is None:
            return
        self._view[self._used : self._used + len(self._tail)] = self._tail
        self._sink.publish(self._used + len(self._tail))
        self._view = None


def _read_whole(disk: Disk, start: int, place: memoryview) -> None:
    """Fill `place` from the image. Raises OSError, and ImageError if the image ends within it."""
    while place:
        count = os.preadv(disk.fd, [place], start)
        if not count:
            raise ImageError(f"{disk.path}: was cut short to {start} of {disk.size} bytes")
        place, start = place[count:], start + count


def _check_present(disk: Disk, end: int) -> None:
    """Raise ImageError if the image ends before `end`, which is no hole then."""
    size = os.fstat(disk.fd).st_size
    if size < end:
        raise ImageError(f"{disk.path}: was cut short to {size} of {disk.size} bytes")
