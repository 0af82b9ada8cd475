"""The facts on a guest that decide whether its stream loads, as a stream has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ...guest.qemu.queries import Block
from ...protocol import events
from ...protocol.devices.description import Structure, devices_of
from ...protocol.devices.fields import Decoder, Field, leaves
from ...protocol.wire.kept import pieces
from ..sources.stream_events import Found
from .device_types import DeviceTypes
from .pci_space import Bars, space_of

ADJUSTABLE = {
    "/rom@etc/acpi/tables": 2 << 20,
    "/rom@etc/table-loader": 64 << 10,
    "/rom@etc/acpi/rsdp": 4 << 10,
}
"""The RAM blocks whose size a destination adjusts, and the most bytes each may have there.

These are what QEMU 7.2 and 10.0 answer to `info ramblock`.
"""
EQUAL, AT_MOST = " equal", " le"
"""The ends of the types of fields that a destination compares with its own: they must be equal, or
not be greater.
"""

Key: TypeAlias = tuple[str, int]
"""The name and the instance id of a section."""


@dataclass(frozen=True)
class Section:
    """The facts on one section.

    `structure`: its entry in the stream's description, or None. `space`: its PCI configuration
    space, if it is a PCI device. `compared`: its fields that a destination compares with its own.
    """

    key: Key
    version: int
    structure: Structure | None = None
    space: bytes | None = None
    compared: Mapping[str, Field] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the section."""
        return self.key[0]

    @property
    def shown(self) -> str:
        """Return the name for a person: with the instance id, unless that is 0."""
        name, instance_id = self.key
        return f"{name}#{instance_id}" if instance_id else name


@dataclass(frozen=True)
class Facts:
    """The facts on one side.

    `capabilities`: those that its configuration has, or that are switched on at a QEMU. `begun`:
    its iterative sections. `told`: its device sections as events, from which a command line is
    derived. `types`: what its QEMU says of its device types, if it was asked. `bars`: the sizes of
    the PCI devices' regions, by the path of the device, if they are known.
    """

    machine: str | None
    page_size: int
    capabilities: frozenset[str]
    blocks: Mapping[str, Block]
    sections: Mapping[Key, Section]
    begun: Mapping[Key, int]
    configuration: events.Configuration | None
    listed: Sequence[events.RamBlock]
    told: Sequence[events.DeviceSection]
    description: events.Description | None
    types: DeviceTypes | None = None
    bars: Mapping[str, Bars] = field(default_factory=dict)


@dataclass
class _Seen:
    """The events of a stream that have facts."""

    configuration: events.Configuration | None = None
    blocks: events.RamBlocks | None = None
    begun: dict[Key, int] = field(default_factory=dict)
    sections: list[events.DeviceSection] = field(default_factory=list)
    description: events.Description | None = None

    def take(self, event: Found) -> None:
        """Keep an event if it has facts."""
        if isinstance(event, events.DeviceSection):
            self.sections.append(event)
        elif isinstance(event, events.IterativeSection):
            self.begun[event.name, event.instance_id] = event.version
        elif isinstance(event, events.RamBlocks):
            self.blocks = event
        elif isinstance(event, events.Configuration):
            self.configuration = event
        elif isinstance(event, events.Description):
            self.description = event


def facts_of(found: Iterable[Found]) -> Facts:
    """Return the facts in the events of a stream. Raises StreamError."""
    seen = _Seen()
    for event in found:
        seen.take(event)
    configuration, blocks = seen.configuration, seen.blocks
    listed = () if blocks is None else blocks.blocks
    names = () if configuration is None else configuration.capabilities or ()
    return Facts(
        machine=None if configuration is None else configuration.machine,
        page_size=4096 if blocks is None else blocks.page_size,
        capabilities=frozenset(names),
        blocks={block.name: _block_of(block) for block in listed},
        sections={section.key: section for section in _sections(seen)},
        begun=seen.begun,
        configuration=configuration,
        listed=listed,
        told=seen.sections,
        description=seen.description,
    )


def _block_of(block: events.RamBlock) -> Block:
    return Block(block.length, max(block.length, ADJUSTABLE.get(block.name, 0)))


def _sections(seen: _Seen) -> Iterable[Section]:
    described = {} if seen.description is None else dict(devices_of(seen.description.json))
    decoder = Decoder(seen.description)
    for event in seen.sections:
        key = (event.name, event.instance_id)
        fields = decoder.decode(event, values=False)
        compared = {
            path: found for path, found in leaves(fields) if found.type.endswith((EQUAL, AT_MOST))
        }
        head = next(iter(pieces(event.payload)), b"")
        yield Section(key, event.version, described.get(key), space_of(head), compared)
