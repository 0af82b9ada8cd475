"""Which RAM block of a stream is the guest's memory, and where the guest sees it.

The stream hardly says either; both follow from the machine's type. The layouts were read off QEMU
7.2 and 10.0 (`info mtree -f`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..protocol.events import RamBlock
from ..protocol.memory_image import EM_AARCH64, EM_X86_64, Region
from .failure import CommandError

GIB = 1 << 30
ABOVE_4G = 4 * GIB
ADDRESS_HOLE = 0xFD_0000_0000
"""On some hosts RAM that would reach this address begins at 1 TiB instead of 4 GiB."""
VIRT_RAM = 1 * GIB
"""Where RAM begins on arm's `virt`."""

DEFAULT_NAMES = ("pc.ram", "microvm.ram", "mach-virt.ram")
"""Of the machines' own RAM, where no memory backend was given."""
FIRMWARE = frozenset(
    {"pc.bios", "pc.rom", "virt.flash0", "virt.flash1", "system.flash0", "system.flash1"}
)


class LayoutError(CommandError):
    """It cannot be told; one line."""


def candidates(blocks: Sequence[RamBlock]) -> list[RamBlock]:
    """Blocks that may be the guest's memory, the likeliest first.

    One with a name that a machine gives its RAM; else what is neither firmware nor named after a
    device or a file (`0000:00:02.0/vga.vram`, `/rom@etc/acpi/tables`): memory backends, which are
    named by their id, or `/objects/ID`. The largest first.
    """
    for block in blocks:
        if block.name in DEFAULT_NAMES:
            return [block]
    found = [
        block
        for block in blocks
        if block.name not in FIRMWARE and "/" not in block.name.removeprefix("/objects/")
    ]
    return sorted(found, key=lambda block: -block.length)


def main_block(blocks: Sequence[RamBlock], *, alone: bool) -> RamBlock:
    """The likeliest; `alone`: there must be no other. Raises LayoutError."""
    found = candidates(blocks)
    if not found:
        names = ", ".join(block.name for block in blocks) or "none"
        raise LayoutError(f"none of the RAM blocks is the guest's memory: {names}")
    if alone and len(found) > 1:
        names = ", ".join(block.name for block in found)
        message = f"memory is in several blocks ({names}), and their order is not known"
        raise LayoutError(f"{message}; extract them one by one, as raw images")
    return found[0]


def regions(machine: str, block: RamBlock, max_below_4g: int | None = None) -> list[Region]:
    """Where the guest sees its memory, `block`.

    By the machine's type, around the holes that it has; where the stream says an address
    (x-ignore-shared) that is not where that type has its memory, there. `max_below_4g`: what the
    machine was given as max-ram-below-4g. Raises LayoutError.
    """
    try:
        found = _layout(machine, block.length, max_below_4g)
    except LayoutError:
        if block.address is None:
            raise
        found = []
    if block.address is not None and (not found or found[0].address != block.address):
        if block.address + block.length > 1 << 64:
            raise LayoutError(f"RAM block {block.name} at {block.address:#x}: no such address")
        return [Region(0, block.length, block.address)]
    return found


def _layout(machine: str, length: int, max_below_4g: int | None) -> list[Region]:
    if machine.startswith("virt-"):
        return [Region(0, length, VIRT_RAM)]
    below = min(length, _below_4g(machine, length, max_below_4g))
    if below == length:
        return [Region(0, length, 0)]
    if ABOVE_4G + length - below > ADDRESS_HOLE:
        raise LayoutError("RAM reaches the address hole below 1 TiB: its addresses are not known")
    return [Region(0, below, 0), Region(below, length - below, ABOVE_4G)]


def elf_machine(machine: str) -> int:
    """The machine's number in an ELF header."""
    return EM_AARCH64 if machine.startswith("virt-") else EM_X86_64


def _below_4g(machine: str, length: int, limit: int | None) -> int:
    """Bytes below the PCI hole, if there is more than that."""
    if machine.startswith("pc-q35-"):
        # Less than 2.75 GiB is not split.
        below = 0xB000_0000 if length < 0xB000_0000 else 2 * GIB
        return min(below, limit or below)
    if machine == "microvm":
        return min(3 * GIB, limit or 3 * GIB)
    if machine.startswith("pc-"):
        # Less than 3.5 GiB is not split.
        below = limit or 0xE000_0000
        return below if length < below or _is_old_pc(machine) else min(below, 3 * GIB)
    name = machine or "without a name"
    raise LayoutError(f"the memory layout of machine {name} is not known: extract it as raw")


def _is_old_pc(machine: str) -> bool:
    """Before 2.0: RAM is not split at a whole GiB."""
    version = re.fullmatch(r"pc-(?:i440fx-)?([01])\.\d+", machine)
    return version is not None
