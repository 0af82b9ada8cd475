"""Place the RAM blocks of a mapped-ram file where QEMU places them."""

from __future__ import annotations

from dataclasses import replace

from ..events import RamBlock, RamBlocks
from ..wire import mapped_ram
from ..wire.mapped_ram import MappedRam
from ..wire.ram import RECORD_HEADER_SIZE
from .block_entry import block_entry


def place_blocks(listed: RamBlocks, start: int) -> tuple[RamBlocks, int]:
    """Return the list with a place for each block, and where in the file the stream goes on.

    `start` is the offset of the stream in its file. Blocks that are known to be left out get no
    place.
    """
    at, blocks = start + listed.offset + RECORD_HEADER_SIZE, []
    for block in listed.blocks:
        placed = _place(block, listed.page_size, at)
        assert placed.mapped is not None
        blocks.append(placed)
        at += len(block_entry(placed))
        if placed.mapped.present:
            at = placed.mapped.pages_offset + block.length
    return replace(listed, blocks=tuple(blocks)), at


def _place(block: RamBlock, page_size: int, at: int) -> RamBlock:
    """Return the block, whose entry begins at `at` in the file, with its place."""
    nowhere = replace(block, page_size=None, mapped=MappedRam(page_size, 0, 0))
    if block.mapped is not None and not block.mapped.present:
        return nowhere
    behind_header = at + len(block_entry(nowhere))
    return replace(nowhere, mapped=mapped_ram.lay_out(block.length, page_size, behind_header))
