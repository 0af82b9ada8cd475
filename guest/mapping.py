"""Map the RAM blocks of a guest into a process, and touch their pages in advance."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..transport.sparse import data_parts, next_data
from .parts import RamBlock

_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23
_POPULATE_STEP = 64 << 20


def block_layout(blocks: Sequence[RamBlock]) -> tuple[dict[str, Any], ...]:
    """Return all fields of RAM blocks except the descriptors, which are sent separately."""
    return tuple(
        {
            "name": block.name,
            "length": block.length,
            "page_size": block.page_size,
            "file_offset": block.file_offset,
        }
        for block in blocks
    )


def map_block(block: RamBlock) -> npt.NDArray[np.uint8]:
    """Return the block's bytes, shared with everybody who maps them."""
    return np.frombuffer(mmap.mmap(block.fd, block.length, offset=block.file_offset), np.uint8)


def populate_present(ram: npt.NDArray[np.uint8], block: RamBlock) -> None:
    """Map the pages that the block's file holds at once, not one fault each; skip holes.

    They become writable, too: pages that exist are mapped writable anyway, and to ask for that
    costs twice as much.
    """
    first = block.file_offset
    for start, end in data_parts(block.fd, first, first + block.length):
        populate(ram, False, start - first, end - first)


def is_hole(block: RamBlock, start: int, end: int) -> bool:
    """Return whether bytes `start` to `end` of the block were never written in its file.

    They are zero then, and reading them through a mapping would allocate them.
    """
    data = next_data(block.fd, block.file_offset + start)
    return data is None or data >= block.file_offset + end


def populate(
    ram: npt.NDArray[np.uint8], write: bool, start: int = 0, end: int | None = None
) -> None:
    """Map bytes `start` to `end` of a `map_block` array at once, allocating them if `write`."""
    end = len(ram) if end is None else end
    mapping = ram.base.obj if isinstance(ram.base, memoryview) else ram.base
    assert isinstance(mapping, mmap.mmap)
    advice = _MADV_POPULATE_WRITE if write else _MADV_POPULATE_READ
    start = start // mmap.PAGESIZE * mmap.PAGESIZE
    for position in range(start, end, _POPULATE_STEP):
        try:
            mapping.madvise(advice, position, min(_POPULATE_STEP, end - position))
        except OSError as error:
            # Kernels before 5.14 do not know the advice; there each page faults by itself.
            if error.errno == errno.EINVAL:
                return
            raise
