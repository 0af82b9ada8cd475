"""Compares two streams: RAM blocks, their pages, and the fields of devices.

Both guests are rebuilt in anonymous memory and compared in steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..console.text import echo
from ..rebuild.arrivals import MissingPages
from ..rebuild.guest import RebuiltGuest, absent_message
from ..rebuild.page_ranges import PageRanges
from ..sources.source import Left
from .devices import DeviceDifference, compare_devices
from .memory import ONLY_A, ONLY_B, differing, names_of_both


@dataclass(frozen=True)
class BlockDifference:
    """A RAM block that only one stream has (the other length is None), or that differs in length or
    pages.
    """

    name: str
    lengths: tuple[int | None, int | None]
    pages: PageRanges | None = None

    def describe(self) -> str:
        """Return a description for users, in one line."""
        one, other = self.lengths
        if self.pages is not None:
            differ = "page differs" if self.pages.count == 1 else "pages differ"
            return f"{self.name}: {self.pages.count} {differ}, at {self.pages.describe()}"
        if one is None or other is None:
            return f"{self.name}: {ONLY_A if other is None else ONLY_B}"
        return f"{self.name}: {one} bytes in the first, {other} in the second"

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys block, lengths (of both, None if missing), and for
        blocks of equal length pages (number that differ) and first_ranges.
        """
        pages = {} if self.pages is None else self.pages.as_json()
        return {"block": self.name, "lengths": list(self.lengths), **pages}


@dataclass(frozen=True)
class Difference:
    """All differences between two streams.

    `absent` names the blocks that are in neither stream; `behind` counts the bytes after each
    stream; `missing` has the pages of each stream that never arrived, and so cannot be compared.
    """

    blocks: list[BlockDifference]
    devices: list[DeviceDifference]
    absent: list[str]
    behind: tuple[Left | None, Left | None]
    missing: tuple[list[MissingPages], list[MissingPages]]

    @property
    def equal(self) -> bool:
        """Return whether nothing that arrived differs."""
        return not self.blocks and not self.devices

    @property
    def whole(self) -> bool:
        """Return whether every page arrived in both streams."""
        return not any(self.missing)

    def as_json(self) -> dict[str, Any]:
        """Return the differences as a dictionary for JSON.

        Keys: equal (everything arrived and nothing differs), differing_pages and differing_fields
        (numbers), blocks, devices, absent, behind (for each stream None, or of Left.as_json),
        missing (for each stream, of MissingPages.as_json).
        """
        return {
            "equal": self.equal and self.whole,
            "differing_pages": self._pages(),
            "differing_fields": self._fields(),
            "blocks": [block.as_json() for block in self.blocks],
            "devices": [device.as_json() for device in self.devices],
            "absent": self.absent,
            "behind": [None if left is None else left.as_json() for left in self.behind],
            "missing": [[pages.as_json() for pages in side] for side in self.missing],
        }

    def print(self) -> None:
        """Print the blocks, the devices with their fields, and the totals."""
        for name in self.absent:
            echo(f"not compared: {absent_message(name)}")
        for which, left in zip(("first", "second"), self.behind, strict=True):
            if left is not None:
                echo(f"not compared: in the {which}, {left.describe()}")
        for block in self.blocks:
            echo(block.describe())
        for device in self.devices:
            for line in device.describe():
                echo(line)
        for side, missing in zip(("first", "second"), self.missing, strict=True):
            for pages in missing:
                echo(f"in the {side}, {pages.describe()}")
        if self.equal:
            apart = "" if self.whole else ", apart from the pages that never arrived"
            echo(f"equal: RAM and devices{apart}")
            return
        blocks = f"{self._pages()} pages in {len(self.blocks)} RAM blocks"
        devices = f"{self._fields()} fields in {len(self.devices)} devices"
        echo(f"differ: {blocks}, {devices}")

    def _pages(self) -> int:
        return sum(block.pages.count for block in self.blocks if block.pages is not None)

    def _fields(self) -> int:
        return sum(device.count for device in self.devices)


def compare_guests(one: RebuiltGuest, other: RebuiltGuest) -> Difference:
    """Return the differences of two guests that have the images of all their blocks."""
    absent = [name for name in one.blocks if name in one.absent and name in other.absent]
    missing = (one.arrivals.missing(), other.arrivals.missing())
    blocks, devices = [*compare_blocks(one, other)], [*compare_devices(one, other)]
    return Difference(blocks, devices, absent, (one.behind, other.behind), missing)


def compare_blocks(one: RebuiltGuest, other: RebuiltGuest) -> Iterator[BlockDifference]:
    """Yield the RAM blocks that differ."""
    page_size = min(one.page_size, other.page_size)
    for name in names_of_both(one.images, other.images):
        a, b = one.images.get(name), other.images.get(name)
        lengths = (None if a is None else a.length, None if b is None else b.length)
        if a is None or b is None or a.length != b.length:
            yield BlockDifference(name, lengths)
            continue
        pages = PageRanges(page_size)
        for start, mask in differing(a.fd, b.fd, a.length, page_size):
            pages.add(start, mask)
        if pages.count:
            yield BlockDifference(name, lengths, pages)
