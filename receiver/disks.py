"""Write the blocks of disks into their images, as they arrive; zeros become holes.

A thread writes, so that the next blocks arrive meanwhile; a few of them are in memory. Which image
a disk has, the guest says when the first block comes.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection

import numpy as np

from ..guest.directory_writeback import begin
from ..guest.disks.image import MAX_DISK, Disk
from ..guest.zero import zero_mask
from ..protocol.errors import StreamError, UnsupportedError
from ..protocol.section_events import DiskBlock, DiskProgress
from ..protocol.wire.block import BLOCK_SIZE, SECTION_NAME, SECTOR_BITS
from ..transport.counters import Counters
from ..transport.process import send_message
from ..transport.sparse import clear, write_at
from ..transport.spill import FileError
from .exchange import Commands, DiskWanted, OpenDisk

MOST_UNDER_WAY = 4
"""Largest number of blocks that wait to be written."""
TOO_FAST = (
    ": make the image as large as the disk; a QEMU 7.2 leaves out the rest where the link is fast,"
    " unless its downtime-limit is 0 or 1"
)
"""The hint for a source that has not sent all of its disks."""
_PIECE = 4096
"""Bytes of a block that are looked at together: where they are all zero, they become a hole."""


@dataclass
class _Image:
    """The image of a disk, of `size` bytes; it grows unless that is `fixed`.

    `end` is the end of the last block that has arrived.
    """

    disk: Disk
    size: int
    fixed: bool
    end: int = 0
    seen: set[int] = field(default_factory=set)
    """Sectors of the blocks that have arrived, of a disk without a name."""


class DiskWriter:
    """The writer of all disks of one stream. `counters` has those of the transport process."""

    def __init__(self, connection: Connection, commands: Commands, counters: Counters) -> None:
        self._connection = connection
        self._commands = commands
        self._counters = counters
        self._images: dict[str, _Image] = {}
        self._percent = 0
        self._offset = 0
        """Stream offset of the block that was taken last, for messages."""
        self._thread = ThreadPoolExecutor(1, "vmferry-disks")
        self._under_way: deque[Future[None]] = deque()

    def take(self, event: DiskBlock | DiskProgress) -> None:
        """Write one block. Raises StreamError, UnsupportedError, FileError."""
        if isinstance(event, DiskProgress):
            # At its very end, a source says 100 whatever it has sent.
            self._percent = max(self._percent, event.percent % 100)
        else:
            self._write(event)

    def _write(self, block: DiskBlock) -> None:
        self._offset, start = block.offset, block.sector << SECTOR_BITS
        if start % BLOCK_SIZE or start >= MAX_DISK:
            message = f"sector {block.sector} of {block.device!r} begins no block"
            raise StreamError(message, offset=block.offset, section=SECTION_NAME)
        image = self._image(block)
        if "" in self._images:
            self._check_alone(block, self._images[""])
        end = start + BLOCK_SIZE
        if image.fixed:
            end = min(end, image.size)
            if start >= end:
                message = f"an image of {image.size} bytes is smaller than the disk at the source"
                raise FileError(errno.ENOSPC, message, image.disk.path)
        while len(self._under_way) >= MOST_UNDER_WAY:
            self._under_way.popleft().result()
        self._under_way.append(self._thread.submit(_put, image, start, end, block.data))
        image.end = max(image.end, end)
        self._counters.add("disk_bytes", end - start)

    def _image(self, block: DiskBlock) -> _Image:
        image = self._images.get(block.device)
        if image is None:
            send_message(self._connection, DiskWanted(block.device))
            disk = self._commands.wait_for(OpenDisk).receive(self._connection)
            image = _Image(disk, disk.size or 0, disk.size is not None)
            self._images[block.device] = image
        return image

    def finish(self) -> None:
        """Raise FileError or StreamError unless all of the disks has arrived, at the stream's end.

        A QEMU 7.2 whose link is fast ends before it has sent its disks. What it told of its
        progress shows that, and so does an image whose end has not arrived.
        """
        images = self._images.values()
        while self._under_way:
            self._under_way.popleft().result()
        for image in images:
            if image.fixed and image.end < image.size:
                message = f"only {image.end} of {image.size} bytes have arrived{TOO_FAST}"
                raise FileError(errno.ENODATA, message, image.disk.path)
        count = sum(-(-image.end // BLOCK_SIZE) for image in images)
        # QEMU tells its progress before most blocks, but not before the last one of each disk.
        if count and self._percent < 100 * (count - len(images) - 1) // count:
            message = f"the source told of {self._percent}% of its disks, and ended{TOO_FAST}"
            raise StreamError(message, offset=self._offset, section=SECTION_NAME)

    def close(self) -> None:
        """End the thread; blocks that are not written yet are dropped."""
        self._thread.shutdown(cancel_futures=True)

    def _check_alone(self, block: DiskBlock, unnamed: _Image) -> None:
        """Raise UnsupportedError if a disk without a name is not the only disk.

        Nothing tells two of them apart. Every block comes once, and the source's progress is told
        ahead of the blocks, before any block comes again because the guest has changed it.
        """
        count = -(-unnamed.size // BLOCK_SIZE)
        again = block.sector in unnamed.seen
        whole = len(unnamed.seen) == count and self._percent >= 100 * (count - 1) // count
        if len(self._images) > 1 or (again and not whole):
            message = "a disk without a name beside another one: give both an id at the source"
            raise UnsupportedError(message, offset=block.offset, section=SECTION_NAME)
        unnamed.seen.add(block.sector)


def _put(image: _Image, start: int, end: int, data: bytes | None) -> None:
    """Write the bytes from `start` to `end`; None stands for zeros. Raises FileError."""
    try:
        if end > image.size:
            os.ftruncate(image.disk.fd, end)
            image.size = end
        _write(image.disk.fd, start, end, data)
    except OSError as error:
        raise FileError(error.errno, error.strerror, image.disk.path) from error


def _write(fd: int, start: int, end: int, data: bytes | None) -> None:
    if data is None:
        clear(fd, start, end)
        return
    holds = ~zero_mask(np.frombuffer(data, np.uint8).reshape(-1, _PIECE))
    # First and last piece (exclusive) of each run of pieces that are all zero, or all not.
    borders = [0, *(np.flatnonzero(np.diff(holds)) + 1).tolist(), len(holds)]
    for first, last in pairwise(borders):
        place, rest = first * _PIECE, min(last * _PIECE, end - start)
        if holds[first]:
            write_at(fd, memoryview(data)[place:rest], start + place)
        elif place < rest:
            clear(fd, start + place, start + rest)
    # The guest stands still while the rest is made durable.
    begin(fd, start, end - start)
