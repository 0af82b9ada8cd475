"""Lays out the guest's memory in a file: raw, as an ELF core, or as LiME.

The memory may consist of several RAM blocks, and the guest may see it in several regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from ...protocol.events import RamBlock
from ...protocol.formats.memory_image import (
    ELF_HEAD_SIZE,
    LIME_HEADER_SIZE,
    Region,
    Segment,
    lime_header,
)

FORMATS = ("raw", "elf", "lime")


class Part(NamedTuple):
    """A RAM block in the file; `regions` has its guest addresses, or None if they are unknown.

    `places` has (start in the block, offset in the file) for each region, in the format of
    `BlockFile`.
    """

    block: RamBlock
    regions: list[Region] | None
    places: list[tuple[int, int]]


@dataclass(frozen=True)
class MemoryFile:
    """The layout of a file of `size` bytes. `headers` has the offset and content of each header
    between the memory regions; `segments` has the entries of an ELF core's header.
    """

    size: int
    segments: list[Segment]
    headers: list[tuple[int, bytes]]
    parts: list[Part]


def lay_out(kind: str, blocks: Sequence[RamBlock], seen: list[Region] | None) -> MemoryFile:
    """Return the layout of a file in one of FORMATS that contains these blocks one after another.

    `seen` has the guest addresses of the blocks, as if they were one block; LiME omits what the
    guest does not see. None means that they are unknown, which only raw and ELF allow.
    """
    length = sum(block.length for block in blocks)
    if kind == "raw" or seen is None:
        head = ELF_HEAD_SIZE if kind == "elf" else 0
        return _file(blocks, [Region(0, length, 0)], [], [head], told=False)
    if kind == "elf":
        places = [ELF_HEAD_SIZE + region.start for region in seen]
        return _file(blocks, seen, [], places, size=ELF_HEAD_SIZE + length)
    sizes = [LIME_HEADER_SIZE + region.length for region in seen]
    starts = list(accumulate(sizes[:-1], initial=0))
    headers = [lime_header(region) for region in seen]
    places = [start + LIME_HEADER_SIZE for start in starts]
    return _file(blocks, seen, list(zip(starts, headers, strict=True)), places)


def _file(
    blocks: Sequence[RamBlock],
    found: list[Region],
    headers: list[tuple[int, bytes]],
    places: list[int],
    *,
    told: bool = True,
    size: int | None = None,
) -> MemoryFile:
    """Return a layout in which region `found[i]` is at offset `places[i]` of the file."""
    parts = []
    begins = accumulate((block.length for block in blocks[:-1]), initial=0)
    for block, begin in zip(blocks, begins, strict=True):
        cuts = [_cut(*at, begin, block.length) for at in zip(found, places, strict=True)]
        inside = [cut for cut in cuts if cut is not None]
        seen = [region for region, _ in inside]
        shown = [(region.start, place) for region, place in inside]
        parts.append(Part(block, seen if told else None, shown))
    segments = [
        Segment(place, region.length, region.address)
        for region, place in zip(found, places, strict=True)
    ]
    end = places[-1] + found[-1].length if size is None else size
    return MemoryFile(end, segments, headers, parts)


def _cut(region: Region, place: int, begin: int, length: int) -> tuple[Region, int] | None:
    """Return the part of a region that is in a block, and its file offset, or None if there is
    none.

    The block has `length` bytes and is at `begin` in memory.
    """
    start = max(region.start, begin)
    size = min(region.start + region.length, begin + length) - start
    if size <= 0:
        return None
    ahead = start - region.start
    return Region(start - begin, size, region.address + ahead), place + ahead
