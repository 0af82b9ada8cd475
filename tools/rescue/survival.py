"""Reports what survived in a damaged stream: which pages and devices are kept, lost or stale."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ...guest.sizes import format_size
from ...protocol.rescue.tail import as_text

MAX_RANGES = 1 << 16
"""The most ranges of pages in a report."""
_SHOWN = 8
"""The most ranges of pages in a line, and the most lines of one kind."""


@dataclass(frozen=True)
class Pages:
    """Pages of one block that have the same fate: their number, and their first MAX_RANGES ranges
    as byte offsets in the block, [start, end).
    """

    count: int
    ranges: list[tuple[int, int]]

    def describe(self) -> str:
        """Return the number of pages and their first ranges."""
        shown = ", ".join(f"{start:#x}-{end:#x}" for start, end in self.ranges[:_SHOWN])
        more = ", ..." if len(self.ranges) > _SHOWN else ""
        return f"{self.count} {'page' if self.count == 1 else 'pages'}, at {shown}{more}"

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys pages, ranges (start and end, byte offsets in the
        block).
        """
        return {"pages": self.count, "ranges": [list(one) for one in self.ranges]}


@dataclass(frozen=True)
class BlockSurvival:
    """The fate of one RAM block of `pages` pages; intact pages are not listed.

    `lost` pages never arrived or are damaged; `stale` pages may have a newer version that was lost;
    `guessed` pages may belong elsewhere.
    """

    block: str
    pages: int
    lost: Pages
    stale: Pages
    guessed: Pages

    def describe(self) -> list[str]:
        """Return a line for each fate that applies to some pages."""
        fates = {
            "lost": self.lost,
            "may be stale (sent again in what is lost)": self.stale,
            "may belong elsewhere": self.guessed,
        }
        return [
            f"{self.block}: {fate}: {pages.describe()}"
            for fate, pages in fates.items()
            if pages.count
        ]

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys block, pages, and lost, stale, guessed (of
        Pages.as_json).
        """
        fates = {name: getattr(self, name).as_json() for name in ("lost", "stale", "guessed")}
        return {"block": self.block, "pages": self.pages, **fates}


@dataclass(frozen=True)
class Piece:
    """A lost piece of the stream, in bytes, and the error that was found there."""

    offset: int
    end: int
    message: str

    def describe(self) -> str:
        """Return a description for users, in one line."""
        if self.end <= self.offset:
            return f"damaged at {self.offset:#x}: {self.message}"
        size = format_size(self.end - self.offset)
        return f"lost {size} of the stream, at {self.offset:#x}-{self.end:#x}: {self.message}"


@dataclass
class Survival:
    """The result of reading a damaged stream: what was lost, and what was kept.

    `pieces` are the lost pieces of the stream; `mended` has the offsets at which one bit was wrong
    and was corrected; `blocks` has the RAM blocks; `unplaced` counts pages of an unknown block;
    `ram_ends` says whether RAM was read up to its end; `rounds_lost` says whether whole rounds may
    be lost; `unlisted` is the size in bytes of RAM in unknown blocks. `kept` and `lost` list
    devices as name and instance id; `described` says whether a description lists the devices.
    """

    pieces: list[Piece] = field(default_factory=list)
    mended: list[int] = field(default_factory=list)
    blocks: list[BlockSurvival] = field(default_factory=list)
    unplaced: int = 0
    ram_ends: bool = True
    rounds_lost: bool = False
    unlisted: int = 0
    kept: list[tuple[str, int]] = field(default_factory=list)
    lost: list[tuple[str, int]] = field(default_factory=list)
    described: bool = True

    @property
    def whole(self) -> bool:
        """Return whether nothing was lost and nothing is in doubt."""
        if self.pieces or self.mended or self.unplaced or self.lost or self.unlisted:
            return False
        return not any(b.lost.count or b.stale.count or b.guessed.count for b in self.blocks)

    def summary(self) -> str:
        """Return a short summary of what was kept."""
        lost = sum(block.lost.count for block in self.blocks)
        pages = sum(block.pages for block in self.blocks)
        devices = f"{len(self.kept)}"
        if self.described:
            devices += f" of {len(self.kept) + len(self.lost)}"
        of_ram = f"{pages - lost} of {pages} pages, " if self.blocks else ""
        return f"kept: {of_ram}{devices} devices"

    def describe(self) -> list[str]:
        """Return a line for each kind of loss."""
        lines = [piece.describe() for piece in self.pieces[:_SHOWN]]
        if len(self.pieces) > _SHOWN:
            lines.append(f"{len(self.pieces) - _SHOWN} more pieces of the stream are lost")
        lines += [f"mended at {offset:#x}: one bit was wrong" for offset in self.mended[:_SHOWN]]
        lines += [line for block in self.blocks for line in block.describe()]
        if self.unplaced:
            lines.append(f"{self.unplaced} pages of a block that is not known were left out")
        if self.unlisted:
            size = format_size(self.unlisted)
            lines.append(f"{size} of RAM: their blocks are not known, their list is damaged")
        if not self.ram_ends:
            lines.append("RAM was not read up to its end: newer versions of any page may be lost")
        elif self.rounds_lost:
            lines.append("more than a round may be lost: newer versions of any page may be lost")
        if self.lost:
            lines.append(f"devices lost: {as_text(self.lost)}")
        if not self.described:
            lines.append(
                "the stream has no description that can be read: "
                "where devices end, and which are lost, is not certain"
            )
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return the result as a dictionary for JSON.

        Keys: pieces (each with offset, end, message), mended (offsets), blocks (of
        BlockSurvival.as_json), unplaced (pages), unlisted (bytes), ram_ends, rounds_lost, devices
        (with the keys kept and lost, each a list of name and instance_id, and described).
        """
        devices = {
            fate: [{"name": name, "instance_id": instance} for name, instance in found]
            for fate, found in (("kept", self.kept), ("lost", self.lost))
        }
        return {
            "pieces": [asdict(piece) for piece in self.pieces],
            "mended": self.mended,
            "blocks": [block.as_json() for block in self.blocks],
            "unplaced": self.unplaced,
            "unlisted": self.unlisted,
            "ram_ends": self.ram_ends,
            "rounds_lost": self.rounds_lost,
            "devices": {**devices, "described": self.described},
        }
