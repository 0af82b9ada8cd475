"""Say where in the file each page is, and hold the bitmaps, which the workers share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...protocol.events import RamBlocks
from ...protocol.wire.mapped_ram import MappedRam, bitmap_size
from ...transport.shared import SharedFd

Bitmap = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BlockPlan:
    """The place of one RAM block in the file; its bitmap is at `start` in the shared memory."""

    place: MappedRam
    start: int
    size: int


@dataclass(frozen=True)
class FilePlan:
    """The places of all RAM blocks by name, and the shared memory of their bitmaps.

    The chunks of different workers have their bits in different bytes.
    """

    blocks: dict[str, BlockPlan]
    memory: SharedFd
    size: int

    def bitmaps(self) -> dict[str, Bitmap]:
        """Map the bitmap of each block, shared with everybody who maps it."""
        shared = np.frombuffer(self.memory.map(self.size), np.uint8)
        return {
            name: shared[block.start : block.start + block.size]
            for name, block in self.blocks.items()
        }


def plan_file(listed: RamBlocks) -> FilePlan:
    """Return the plan for a list of blocks that have their places; no page is there yet."""
    blocks, at = {}, 0
    for block in listed.blocks:
        assert block.mapped is not None
        size = bitmap_size(block.length, block.mapped.page_size)
        blocks[block.name] = BlockPlan(block.mapped, at, size)
        at += size
    return FilePlan(blocks, SharedFd.memory("vmferry-bitmaps", at), at)
