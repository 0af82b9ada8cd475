"""Locates memory that was plugged into a guest (DIMMs, NVDIMMs, virtio-mem) from device state.

The state of a virtio-mem device has its address. NVDIMMs are described in the guest's ACPI tables,
which are a RAM block of their own. A DIMM has no state: its slot is in the state of the chipset,
and its address follows from QEMU's rule of placement if only one address is possible. Fields and
rule were taken from streams and `info memory-devices` of QEMU 7.2 and 10.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from ...guest.sizes import format_size
from ...protocol.devices import virtio_mem as protocol
from ...protocol.devices.fields import Decoder, leaves
from ...protocol.errors import StreamError
from ...protocol.events import Description, DeviceSection, RamBlock
from ...protocol.formats import nfit
from ...protocol.formats.memory_image import Region
from .main_ram import GIB, PC, Choice, Guest, at, unknown_order

TABLES = "/rom@etc/acpi/tables"
"""The name of the RAM block with a guest's ACPI tables, which the guest can only read."""
MAX_TABLES = 16 << 20
"""The largest size in bytes of ACPI tables that are parsed."""
MAX_LABEL = 64 << 20
"""The most bytes at the end of an NVDIMM's block that the guest does not see as memory."""
ALIGNMENT = 2 << 20
"""The alignment of an address in bytes."""
MAX_BLOCKS = 12
"""The most RAM blocks among which the main memory is searched for by size."""

_SLOT = re.compile(r"(?:.*/)?(?:acpi_memory_hotplug|memhp_state)/devs\[\d+\]/is_enabled")
_CLOCK = "mc146818rtc"
_SUFFIXES = ("/virtio-mem", "/virtio-mem-device-early", "/ICH9LPC", "/piix4_pm", "/virtio-pmem")
_NAMES = frozenset({_CLOCK, "acpi-ged"})


class Plugged(NamedTuple):
    """Memory at an address: the parts of a block that the guest sees. `span` has the address and
    length of the range that is reserved for the block.
    """

    block: RamBlock
    regions: list[Region]
    span: tuple[int, int]


def whole(block: RamBlock, address: int) -> Plugged:
    """Return a whole block at an address. Raises LayoutError if the block does not fit there."""
    return Plugged(block, [at(block, address)], (address, block.length))


class LeftOut(NamedTuple):
    """Memory that is left out of the output, and a line that says why and how to place it."""

    block: RamBlock
    why: str

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys block, length, why."""
        return {"block": self.block.name, "length": self.block.length, "why": self.why}


@dataclass
class Facts:
    """The facts that device state has on the guest's memory.

    `slots` is the number of DIMMs that are plugged in, or None if unknown; `ram_size` is the size
    in bytes of the main memory, by the clock's CMOS; `virtio_mem` has the plugged-in parts of each
    virtio-mem block by its name, or None if unknown; `nvdimms` has the address and length of each
    NVDIMM; `hidden` means that some memory takes an address but has no RAM block.
    """

    slots: int | None = None
    ram_size: int | None = None
    virtio_mem: dict[str, Plugged | None] = field(default_factory=dict)
    nvdimms: list[tuple[int, int]] = field(default_factory=list)
    hidden: bool = False

    @property
    def plugged(self) -> int:
        """Return the number of blocks that DIMMs and NVDIMMs have."""
        return (self.slots or 0) + len(self.nvdimms)


def is_told_by(section: DeviceSection) -> bool:
    """Return whether a device section has facts on memory."""
    return section.name in _NAMES or section.name.endswith(_SUFFIXES)


def may_be_plugged(name: str) -> bool:
    """Return whether a device's RAM block may belong to a virtio-mem device, by its name."""
    return "/" in name[1:] and not name.startswith("/") and not name.endswith((".rom", "vram"))


def look(
    sections: Iterable[DeviceSection],
    description: Description | None,
    blocks: Iterable[RamBlock] = (),
    tables: bytes = b"",
    *,
    damaged: bool = False,
) -> Facts:
    """Collect the facts from the devices, all RAM blocks, and the guest's ACPI tables.

    Raises StreamError if a device does not match its description, unless the stream is `damaged`.
    """
    decoder, facts = Decoder(description), Facts(nvdimms=nfit.ranges(tables))
    virtio: dict[str, list[DeviceSection]] = {}
    for section in sections:
        path = protocol.path_of(section)
        if path is not None:
            virtio.setdefault(path, []).append(section)
            continue
        try:
            _note(facts, section, decoder)
        except StreamError:
            if not damaged:
                raise
    for block in blocks:
        for path, found in virtio.items():
            if block.name.startswith(f"{path}/"):
                try:
                    facts.virtio_mem[block.name] = virtio_mem(block, found, decoder)
                except StreamError:
                    if not damaged:
                        raise
                    facts.virtio_mem[block.name] = None
    return facts


def _note(facts: Facts, section: DeviceSection, decoder: Decoder) -> None:
    """Add the facts in a device section that is not of virtio-mem."""
    if section.name.endswith("/virtio-pmem"):
        facts.hidden = True
    elif section.name == _CLOCK:
        facts.ram_size = _size_in_cmos(dict(leaves(decoder.decode(section))))
    else:
        slots = _slots(decoder, section)
        facts.slots = sum(slots) if slots else facts.slots


def _slots(decoder: Decoder, section: DeviceSection) -> list[bool]:
    """Return whether a DIMM is plugged in, for each slot."""
    fields = leaves(decoder.decode(section))
    return [bool(each.value) for path, each in fields if _SLOT.fullmatch(path)]


def count_slots(sections: Iterable[DeviceSection], description: Description | None) -> int | None:
    """Return the number of DIMM slots of a machine, or None if unknown. Raises StreamError."""
    decoder = Decoder(description)
    counts = [
        len(_slots(decoder, section))
        for section in sections
        if is_told_by(section) and not section.name.endswith(("virtio-mem", "virtio-pmem"))
    ]
    return max(counts, default=0) or None


def _size_in_cmos(fields: dict[str, Any]) -> int | None:
    """Return the size of memory in bytes in a PC's CMOS, or None. The guest can change it, too."""
    if "cmos_data" not in fields:
        return None
    data = fields["cmos_data"].value
    if len(data) != 128:
        return None
    low = (int(data[0x34]) << 16) + (int(data[0x35]) << 24)
    high = sum(int(data[0x5B + place]) << (16 + 8 * place) for place in range(3))
    extended = (int(data[0x30]) << 10) + (int(data[0x31]) << 18)
    return (low + (16 << 20) if low else extended + (1 << 20)) + high


def settle(choice: Choice, facts: Facts) -> Choice:
    """Return the choice with its main blocks, determined from devices if RAM blocks were not
    sufficient.

    Raises LayoutError if devices are not sufficient, either.
    """
    if choice.main is not None:
        return choice
    listed = choice.others
    largest_first = sorted(listed, key=lambda block: -block.length)
    if not 0 < facts.plugged < len(listed) <= MAX_BLOCKS:
        raise unknown_order(largest_first)
    fitting = [
        list(some)
        for some in combinations(listed, len(listed) - facts.plugged)
        if _fits(some, listed, facts)
    ]
    if len({tuple(block.length for block in some) for some in fitting}) != 1:
        raise unknown_order(largest_first)
    # Blocks of the same size are in the order of their creation, and main memory is created before
    # DIMMs.
    main = fitting[0]
    if len(main) > 1:
        raise unknown_order(main)
    return Choice(main, [block for block in listed if block not in main])


def _fits(main: Sequence[RamBlock], listed: Sequence[RamBlock], facts: Facts) -> bool:
    """Return whether these blocks have the size of main memory, and the others have all NVDIMMs."""
    rest = [block for block in listed if block not in main]
    for _, length in facts.nvdimms:
        found = _of_nvdimm(rest, length)
        if not found:
            return False
        rest.remove(found[0])
    size = sum(block.length for block in main)
    return facts.ram_size is None or size == facts.ram_size


def _of_nvdimm(blocks: Sequence[RamBlock], length: int) -> list[RamBlock]:
    """Return the blocks that may belong to an NVDIMM with this length in the guest."""
    exact = [block for block in blocks if block.length == length]
    labelled = [block for block in blocks if 0 < block.length - length <= MAX_LABEL]
    return exact or labelled


def place(
    guest: Guest, main: list[Region], choice: Choice, blocks: Sequence[RamBlock], facts: Facts
) -> tuple[list[Plugged], list[LeftOut]]:
    """Determine the addresses of memory that was plugged in; return what is placed and what is left
    out.

    `main` has the guest addresses of the choice's main blocks; `blocks` are all blocks of the
    stream.
    """
    placed: list[Plugged] = []
    left: list[LeftOut] = []
    for block in blocks:
        found_there = facts.virtio_mem.get(block.name)
        if found_there is not None:
            placed.append(found_there)
        elif block.name in facts.virtio_mem:
            left.append(LeftOut(block, _hint("its device does not say where it is", block)))
    known = [whole(block, a) for block in choice.others for a in _told(guest, block)]
    rest = [block for block in choice.others if not _told(guest, block)]
    placed += known
    for address, length in facts.nvdimms:
        found = _of_nvdimm(rest, length)
        if len(found) == 1:
            seen = [Region(0, length, address)]
            placed.append(Plugged(found[0], seen, (address, length)))
            rest.remove(found[0])
    dimms, unknown = _dimms(guest, main, rest, facts, placed)
    return placed + dimms, left + unknown


def _told(guest: Guest, block: RamBlock) -> list[int]:
    """Return the address of the block, if it is known from outside the stream, as a list of at most
    one.
    """
    address = guest.plugged.get(block.name.removeprefix("/objects/"))
    return [] if address is None else [address]


def virtio_mem(
    block: RamBlock, sections: Iterable[DeviceSection], decoder: Decoder
) -> Plugged | None:
    """Return the plugged-in parts of a virtio-mem block (possibly none) and their addresses, or
    None if its sections do not have them.

    Raises StreamError if a section does not match its description.
    """
    states = (protocol.read_state(section, block.length, decoder) for section in sections)
    state = next((state for state in states if state is not None), None)
    if state is None or state.address + block.length > 1 << 64:
        return None
    edges = np.flatnonzero(np.diff(state.plugged.astype(np.int8), prepend=0, append=0)).tolist()
    each = state.block_size
    seen = [
        Region(start * each, (end - start) * each, state.address + start * each)
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    return Plugged(block, seen, (state.address, block.length))


def _dimms(
    guest: Guest, main: list[Region], blocks: list[RamBlock], facts: Facts, placed: list[Plugged]
) -> tuple[list[Plugged], list[LeftOut]]:
    """Place DIMMs by QEMU's rule: at the first free address after the end of memory."""
    base = _base_for_dimms(guest, main)
    if base is None:
        why = "where this machine has memory that is plugged in is not known"
        return [], [LeftOut(block, _hint(why, block)) for block in blocks]
    if blocks and all(block.address is not None for block in blocks):
        return [whole(block, base + (block.address or 0)) for block in blocks], []
    if len(blocks) == 1 and facts.slots == 1 and not facts.hidden and not guest.plugged:
        address = _first_free(base, blocks[0].length, placed)
        return [whole(blocks[0], address)], []
    if facts.slots == 0:
        return [], [LeftOut(block, _hint("it is in no slot", block)) for block in blocks]
    why = f"the stream does not say where; memory that is plugged in begins at {base:#x}"
    return [], [LeftOut(block, _hint(why, block)) for block in blocks]


def _base_for_dimms(guest: Guest, main: list[Region]) -> int | None:
    machines = guest.machines
    if guest.base is not None or not machines or not main:
        return None
    end = max(region.address + region.length for region in main)
    if all(PC.issuperset(machine.targets) for machine in machines):
        return -(-max(end, 4 * GIB) // GIB) * GIB
    if all(machine.memory == ("mach-virt.ram",) for machine in machines):
        return -(-end // GIB) * GIB
    return None


def _first_free(base: int, size: int, taken: list[Plugged]) -> int:
    for address, length in sorted(plugged.span for plugged in taken):
        if address >= base + size:
            break
        base = max(base, -(-(address + length) // ALIGNMENT) * ALIGNMENT)
    return base


def _hint(why: str, block: RamBlock) -> str:
    size = format_size(block.length)
    return f"{block.name} ({size}) is left out: {why}; --block {block.name}@ADDRESS places it"


def unplaced(block: RamBlock) -> LeftOut:
    """Return the entry for memory that is left out of a raw image."""
    size = format_size(block.length)
    why = f"{block.name} ({size}) is left out: it may be memory that was plugged in"
    return LeftOut(block, f"{why}; --format elf or --block {block.name} extracts it")


def not_brought(block: RamBlock) -> LeftOut:
    """Return the entry for memory that the stream left out as shared."""
    size = format_size(block.length)
    return LeftOut(
        block, f"{block.name} ({size}) is left out: the stream does not bring it (shared)"
    )
