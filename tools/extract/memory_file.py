"""How the guest's memory stands in a file: as it is (raw), as an ELF core, or as LiME.

It may be made up of several RAM blocks, and the guest may see it in several regions.
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
    """A RAM block in the file; `regions`: where the guest sees it, None: not told.

    `places`: (start in the block, place in the file) of each region, as `BlockFile` takes them.
    """

    block: RamBlock
    regions: list[Region] | None
    places: list[tuple[int, int]]


@dataclass(frozen=True)
class MemoryFile:
    """A file of `size` bytes; `headers`: what stands between memory, and where; `segments`: what
    an ELF core's head tells of it."""

    size: int
    segments: list[Segment]
    headers: list[tuple[int, bytes]]
    parts: list[Part]


def lay_out(kind: str, blocks: Sequence[RamBlock], seen: list[Region] | None) -> MemoryFile:
    """Return how a file of these blocks, one behind the other, is laid out in one of FORMATS.

    `seen`: where the guest sees them, counted as if they were one block; what it does not see is
    not in LiME. None: not known, which only raw and ELF can do without.
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
    """`places`: where in the file each of these regions stands."""
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
    """What of a region, and where, is in a block of `length` bytes that is at `begin` in memory."""
    start = max(region.start, begin)
    size = min(region.start + region.length, begin + length) - start
    if size <= 0:
        return None
    ahead = start - region.start
    return Region(start - begin, size, region.address + ahead), place + ahead
