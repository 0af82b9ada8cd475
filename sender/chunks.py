"""Map the guest's RAM into a process that scans it, and name the pages that are scanned at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..guest.mapping import map_block, populate, populate_present
from ..guest.parts import RamBlock
from ..guest.tracking.digests import DigestTracker
from ..guest.tracking.marks import MarkTracker
from ..guest.tracking.table import TableTracker, map_table
from ..guest.tracking.tracker import Tracker
from ..transport.process import receive_fd
from ..transport.settings import TrackerKind
from ..transport.sparse import data_parts
from .share import Share
from .tracking import WorkerTracking

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
    connection: Connection,
    layout: Sequence[dict[str, Any]],
    tracking: WorkerTracking,
    share: Share,
) -> list[MappedBlock]:
    """Map all RAM, whose descriptors arrive over `connection`, in the order of `layout`.

    Those that `tracking` needs follow. The pages of this `share` are mapped at once.
    """
    fds = [receive_fd(connection) for _ in layout]
    more = [receive_fd(connection) for _ in range(tracking.fds)]
    blocks = [RamBlock(fd=fd, **fields) for fields, fd in zip(layout, fds, strict=True)]
    mapped, before = [], 0
    for block, tracker in zip(blocks, _trackers(tracking, blocks, more), strict=True):
        flat = map_block(block)
        _populate_own(flat, block, share, before)
        before += -(-block.length // (CHUNK_PAGES * block.page_size))
        ram = flat.reshape(-1, block.page_size)
        mapped.append(MappedBlock(block, block.name.encode(), block.page_size, ram, tracker))
    return mapped


def _populate_own(flat: npt.NDArray[np.uint8], block: RamBlock, share: Share, before: int) -> None:
    """Map the pages of a share of a block, whose first chunk has the number `before`, at once.

    Nobody looks at the other pages, and to map and unmap them would take time, too.
    """
    if share.count == 1:
        populate_present(flat, block)
        return
    size, begin = CHUNK_PAGES * block.page_size, block.file_offset
    for start, end in data_parts(block.fd, begin, begin + block.length):
        first, last = (start - begin) // size, -(-(end - begin) // size)
        for chunk in (first + share.own(before + first, last - first)).tolist():
            populate(
                flat, False, max(start - begin, chunk * size), min(end - begin, (chunk + 1) * size)
            )


def _trackers(
    tracking: WorkerTracking, blocks: Sequence[RamBlock], fds: Sequence[int]
) -> list[Tracker]:
    """Return the tracker of each block, by `fds` that belong to this way of tracking."""
    counts = [block.length // block.page_size for block in blocks]
    if tracking.kind is TrackerKind.SOFT_DIRTY:
        return [TableTracker(part) for part in map_table(fds[0], counts)]
    each = list(zip(counts, blocks, strict=True))
    if tracking.kind is TrackerKind.USERFAULTFD:
        return [
            MarkTracker(fds[0], address, count, block.page_size)
            for address, (count, block) in zip(tracking.addresses, each, strict=True)
        ]
    return [DigestTracker(count, block.page_size) for count, block in each]
