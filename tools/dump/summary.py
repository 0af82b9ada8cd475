"""What `dump` tells of a stream, apart from how it came to know.

Together with `outline` it is all that most streams take: so nothing that is slow to load is here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...protocol.fast.outline import Device, Outline

if TYPE_CHECKING:
    from ..sources.channel_count import ChannelCount
    from ..sources.source import Left

PAGE_KINDS = ("plain", "zero", "xbzrle", "compressed")
"""How pages may be sent."""


@dataclass
class PageCount:
    """How many pages came, by kind."""

    plain: int = 0
    zero: int = 0
    xbzrle: int = 0
    compressed: int = 0

    def add(self, kind: str, count: int) -> None:
        """So many more of one of PAGE_KINDS."""
        setattr(self, kind, getattr(self, kind) + count)

    def row(self) -> list[int]:
        """In the order of PAGE_KINDS."""
        return [getattr(self, kind) for kind in PAGE_KINDS]


@dataclass
class BlockSummary:
    """Pages of one RAM block. `may_be_absent`: see RamBlock."""

    name: str
    length: int
    may_be_absent: bool
    pages: PageCount

    @property
    def absent(self) -> bool:
        """It is shared, and was left out."""
        return self.may_be_absent and not any(self.pages.row())

    def as_json(self) -> dict[str, Any]:
        """Keys: name, length, absent, and how many pages of each of PAGE_KINDS."""
        known = {"name": self.name, "length": self.length, "absent": self.absent}
        return {**known, **asdict(self.pages)}


@dataclass
class SectionSummary:
    """An iterative section: `pieces` of `size` bytes together. `known`: what it holds was read."""

    name: str
    section_id: int
    instance_id: int
    version: int
    pieces: int = 0
    size: int = 0
    known: bool = True


@dataclass
class Summary:
    """What `dump` tells of a stream."""

    machine: str | None = None
    page_size: int = 4096
    capabilities: list[str] = field(default_factory=list)
    size: int = 0
    ram_parts: int = 0
    commands: list[int] = field(default_factory=list)
    blocks: list[BlockSummary] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    description: int | None = None
    """Bytes of it."""
    rounds: list[PageCount] = field(default_factory=list)
    """See `rounds`; none where pages have places of their own (mapped-ram)."""
    sections: dict[int, SectionSummary] = field(default_factory=dict)
    """By section id."""
    piece: tuple[SectionSummary, int] | None = None
    """The section whose piece came last, and where in the stream that begins."""
    footers: bool = True
    unsplit: int = 0
    """Bytes of device sections that cannot be told apart."""
    channels: list[ChannelCount] = field(default_factory=list)
    """Of a multifd migration, as far as they were given."""
    behind: Left | None = None
    """What stands behind the end of the stream."""

    def as_json(self) -> dict[str, Any]:
        """Keys: machine, page_size, capabilities, size, ram_parts, commands, blocks (see
        BlockSummary), rounds (of each, pages by kind), sections (see SectionSummary), devices (see
        Device), unsplit_devices (bytes), footers, description (whether there are any), channels
        (see ChannelCount), behind (see Left; null where nothing stands behind the stream)."""
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
    """What the outline of an ordinary stream tells."""
    ram = SectionSummary("ram", found.section_id, 0, 4, found.ram_pieces, found.ram_size)
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
