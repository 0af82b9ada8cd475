"""How the guest's memory stands in a file: as it is (raw), as an ELF core, or as LiME.

It may be made up of several RAM blocks, and the guest may see it in several regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from ..protocol.events import RamBlock
from ..protocol.memory_image import ELF_HEAD_SIZE, LIME_HEADER_SIZE, Region, elf_head, lime_header
from .main_ram import elf_machine, regions

FORMATS = ("raw", "elf", "lime")


class Part(NamedTuple):
    """A RAM block in the file; `regions`: where the guest sees it, None: not told.

    `places`: (start in the block, place in the file), as `BlockFile` takes them.
    """

    block: RamBlock
    regions: list[Region] | None
    places: list[tuple[int, int]]


@dataclass(frozen=True)
class MemoryFile:
    """A file of `size` bytes; `headers`: what stands beside memory, and where.

    `regions`: where the guest sees the memory, all of it.
    """

    size: int
    regions: list[Region]
    headers: list[tuple[int, bytes]]
    parts: list[Part]


def lay_out(
    kind: str, machine: str, blocks: Sequence[RamBlock], max_below_4g: int | None
) -> MemoryFile:
    """A file of these blocks, one behind the other, in one of FORMATS. Raises LayoutError."""
    if kind == "raw":
        whole = [Region(0, sum(block.length for block in blocks), 0)]
        return _file(blocks, whole, [], [0], told=False)
    found = regions(machine, blocks, max_below_4g)
    if kind == "elf":
        places = [ELF_HEAD_SIZE + region.start for region in found]
        return _file(blocks, found, [(0, elf_head(found, elf_machine(machine)))], places)
    starts = [region.start + i * LIME_HEADER_SIZE for i, region in enumerate(found)]
    headers = [lime_header(region) for region in found]
    places = [start + LIME_HEADER_SIZE for start in starts]
    return _file(blocks, found, list(zip(starts, headers, strict=True)), places)


def _file(
    blocks: Sequence[RamBlock],
    found: list[Region],
    headers: list[tuple[int, bytes]],
    places: list[int],
    *,
    told: bool = True,
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
    return MemoryFile(places[-1] + found[-1].length, found, headers, parts)


def _cut(region: Region, place: int, begin: int, length: int) -> tuple[Region, int] | None:
    """What of a region, and where, is in a block of `length` bytes that is at `begin` in memory."""
    start = max(region.start, begin)
    size = min(region.start + region.length, begin + length) - start
    if size <= 0:
        return None
    ahead = start - region.start
    return Region(start - begin, size, region.address + ahead), place + ahead
