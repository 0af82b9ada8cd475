"""Map the guest's RAM into a process that scans it, and name the pages that are scanned at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..guest.base import RamBlock, map_block, populate_present
from ..guest.tracking.digests import DigestTracker
from ..guest.tracking.marks import MarkTracker
from ..guest.tracking.tracker import Tracker
from ..transport.process import receive_fd

CHUNK_PAGES = 512
"""Pages that are scanned at once; also the unit in which RAM is distributed to the workers."""


@dataclass(frozen=True)
class MappedBlock:
    """A RAM block as this worker sees it: pages as an array (n, page_size), and its tracker."""

    block: RamBlock
    name: bytes
    page_size: int
    ram: npt.NDArray[np.uint8]
    tracker: Tracker


@dataclass(frozen=True)
class Chunk:
    """The pages of a block that are scanned at once, from page `first` on.

    `own` is the number of the first one among the pages of this worker.
    """

    block: MappedBlock
    first: int
    own: int

    def offsets(self, indexes: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
        """Return the offsets in the block, in bytes, of these pages of the chunk."""
        return (self.first + indexes).astype(np.uint64) * np.uint64(self.block.page_size)


def map_blocks(
    connection: Connection, layout: Sequence[dict[str, Any]], marked: tuple[int, ...] | None
) -> list[MappedBlock]:
    """Map all RAM, whose descriptors arrive over `connection`, in the order of `layout`.

    `marked` has the address of each block in the guest's process if the kernel marks its writes;
    the descriptor of that process's pagemap arrives then, too.
    """
    fds = [receive_fd(connection) for _ in layout]
    pagemap = None if marked is None else receive_fd(connection)
    mapped = []
    for number, (fields, fd) in enumerate(zip(layout, fds, strict=True)):
        block = RamBlock(fd=fd, **fields)
        flat = map_block(block)
        populate_present(flat, block)
        ram = flat.reshape(-1, block.page_size)
        tracker: Tracker = DigestTracker(len(ram), block.page_size)
        if marked is not None and pagemap is not None:
            tracker = MarkTracker(pagemap, marked[number], len(ram), block.page_size)
        mapped.append(MappedBlock(block, block.name.encode(), block.page_size, ram, tracker))
    return mapped
