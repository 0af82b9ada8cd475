"""Writes the disks that migrate with a guest (the `block` section) to raw files, sparse where zero.

The stream does not contain the size of a disk, only 1 MiB blocks of it, the last one padded. So the
file ends with the last block that arrived, and may be longer than the disk.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...guest.file_names import file_name
from ...protocol.errors import StreamError, UnsupportedError
from ...protocol.section_events import DiskBlock
from ...protocol.wire.block import BLOCK_SIZE, SECTION_NAME
from ...transport.sparse import next_data, write_at
from ..console.failure import named

SECTOR = 512
MAX_DISKS = 256
MAX_SIZE = 1 << 50
"""The largest disk in bytes."""


@dataclass
class Disk:
    """A disk in `file`; `size` is the number of bytes up to the end of the last arrived block."""

    device: str
    file: str
    size: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys device, file, size."""
        return asdict(self)


class DiskFiles:
    """The disks of one stream, written in `folder`, which is later renamed to `shown`.

    The files are closed with `stack`.
    """

    def __init__(self, folder: Path, shown: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._shown = shown
        self._stack = stack
        self._files: dict[str, tuple[int, Disk]] = {}

    @property
    def disks(self) -> list[Disk]:
        """Return the disks in the order in which they arrived."""
        return [disk for _, disk in self._files.values()]

    def take(self, block: DiskBlock) -> None:
        """Write a block to its disk. Raises StreamError for an invalid disk or sector; OSError."""
        if block.device not in self._files:
            self._open(block)
        fd, disk = self._files[block.device]
        start = block.sector * SECTOR
        if start + BLOCK_SIZE > MAX_SIZE:
            message = f"disk {block.device} reaches {start + BLOCK_SIZE} bytes"
            raise StreamError(message, offset=block.offset, section=SECTION_NAME)
        with named(disk.file):
            if start + BLOCK_SIZE > disk.size:
                disk.size = start + BLOCK_SIZE
                os.ftruncate(fd, disk.size)
            if block.data is not None:
                write_at(fd, block.data, start)
            elif _has_data(fd, start):
                write_at(fd, bytes(BLOCK_SIZE), start)

    def _open(self, block: DiskBlock) -> None:
        number = len(self._files)
        if not block.device:
            message = "a disk without a name: there may be several, which cannot be distinguished"
            raise UnsupportedError(message, offset=block.offset, section=SECTION_NAME)
        if number == MAX_DISKS:
            message = f"more than {MAX_DISKS} disks"
            raise StreamError(message, offset=block.offset, section=SECTION_NAME)
        name = file_name(number, block.device)
        shown = str(self._shown / name)
        with named(shown):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(self._folder / name, flags, 0o600)
        self._stack.callback(os.close, fd)
        self._files[block.device] = (fd, Disk(block.device, shown))


def _has_data(fd: int, start: int) -> bool:
    """Return whether the file has data, not only a hole, where the block belongs."""
    data = next_data(fd, start)
    return data is not None and data < start + BLOCK_SIZE
