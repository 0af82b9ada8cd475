"""Write the entries of the list of RAM blocks."""

from __future__ import annotations

from ..events import RamBlock
from ..wire import mapped_ram, ram


def block_entry(block: RamBlock) -> bytes:
    """Return the bytes of one entry of the list of RAM blocks."""
    pieces: list[bytes] = [
        ram.BlockEntry.build({"name": block.name.encode(), "length": block.length})
    ]
    if block.page_size is not None:
        pieces.append(ram.BlockPageSize.build(block.page_size))
    if block.address is not None:
        pieces.append(ram.BlockAddress.build(block.address))
    if block.mapped is not None:
        pieces.append(mapped_ram.build_header(block.mapped))
    return b"".join(pieces)
