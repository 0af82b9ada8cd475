"""Holds the facts on a stream that `dump` shows, whichever reader collected them.

Most streams only need this module and `outline`, so it imports nothing that is slow to load.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...protocol.fast.outline import Device, Outline
from ...protocol.wire.marks import DEFAULT_PAGE_SIZE, RAM_SECTION, RAM_VERSION

if TYPE_CHECKING:
    from ..sources.channel_count import ChannelCount
    from ..sources.source import Left

PAGE_KINDS = ("plain", "zero", "xbzrle", "compressed")
"""The kinds of page records."""


@dataclass
class PageCount:
    """The number of pages of each kind."""

    plain: int = 0
    zero: int = 0
    xbzrle: int = 0
    compressed: int = 0

    def add(self, kind: str, count: int) -> None:
        """Add `count` pages of one of PAGE_KINDS."""
        setattr(self, kind, getattr(self, kind) + count)

    def row(self) -> list[int]:
        """Return the numbers in the order of PAGE_KINDS."""
        return [getattr(self, kind) for kind in PAGE_KINDS]


@dataclass
class BlockSummary:
    """The pages of one RAM block; `may_be_absent` is that of the event RamBlock."""

    name: str
    length: int
    may_be_absent: bool
    pages: PageCount

    @property
    def absent(self) -> bool:
        """Return whether the block was left out because it is shared."""
        return self.may_be_absent and not any(self.pages.row())

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys name, length, absent, and the number of pages by
        PAGE_KINDS.
        """
        known = {"name": self.name, "length": self.length, "absent": self.absent}
        return {**known, **asdict(self.pages)}


@dataclass
class SectionSummary:
    """An iterative section with `pieces` pieces of `size` bytes in total; `known` says whether it
    was decoded.
    """

    name: str
    section_id: int
    instance_id: int
    version: int
    pieces: int = 0
    size: int = 0
    known: bool = True


@dataclass
class Summary:
    """The facts on a stream that `dump` shows."""

    machine: str | None = None
    page_size: int = DEFAULT_PAGE_SIZE
    capabilities: list[str] = field(default_factory=list)
    size: int = 0
    ram_parts: int = 0
    commands: list[int] = field(default_factory=list)
    blocks: list[BlockSummary] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    description: int | None = None
    """The size of the description in bytes."""
    rounds: list[PageCount] = field(default_factory=list)
    """The pages of each round; empty for a mapped-ram file, where each page has a fixed place."""
    sections: dict[int, SectionSummary] = field(default_factory=dict)
    """The iterative sections by section id."""
    piece: tuple[SectionSummary, int] | None = None
    """The section of the last piece, and the offset in the stream at which that piece begins."""
    footers: bool = True
    unsplit: int = 0
    """The bytes of device state that cannot be split into sections."""
    channels: list[ChannelCount] = field(default_factory=list)
    """The channels of a multifd migration that were given."""
    behind: Left | None = None
    """The number of bytes after the end of the stream."""

    def as_json(self) -> dict[str, Any]:
        """Return the summary as a dictionary for JSON.

        Keys: machine, page_size, capabilities, size, ram_parts, commands, blocks (of
        BlockSummary.as_json), rounds (pages by kind in each), sections (fields of SectionSummary),
        devices (fields of Device), unsplit_devices (bytes), footers, description (whether there is
        one), channels (fields of ChannelCount), behind (None, or of Left.as_json).
        """
        return {
            "machine": self.machine,
            "page_size": self.page_size,
            "capabilities": self.capabilities,
            "size": self.size,
            "ram_parts": self.ram_parts,
            "commands": self.commands,
            "blocks": [block.as_json() for block in self.blocks],
            "rounds": [asdict(pages) for pages in self.rounds],
            "sections": [asdict(section) for section in self.sections.values()],
            "devices": [device._asdict() for device in self.devices],
            "unsplit_devices": self.unsplit,
            "footers": self.footers,
            "description": self.description is not None,
            "channels": [asdict(channel) for channel in self.channels],
            "behind": None if self.behind is None else self.behind.as_json(),
        }


def from_outline(found: Outline) -> Summary:
    """Return the summary of an ordinary stream from its outline."""
    ram = SectionSummary(
        RAM_SECTION, found.section_id, 0, RAM_VERSION, found.ram_pieces, found.ram_size
    )
    return Summary(
        machine=found.machine,
        size=found.size,
        ram_parts=found.ram_parts,
        commands=found.commands,
        blocks=[BlockSummary(b.name, b.length, False, PageCount(*b.pages)) for b in found.blocks],
        devices=found.devices,
        description=found.description,
        rounds=[PageCount(*pages) for pages in found.rounds],
        sections={found.section_id: ram},
    )
