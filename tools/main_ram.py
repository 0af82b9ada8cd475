"""Which RAM blocks of a stream are the guest's memory, and where the guest sees them.

The stream hardly says either; both follow from the machine's type. The layouts were read off QEMU
7.2 and 10.0 (`info mtree -f`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter

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
NODE_NAME = re.compile(r"(?:/objects/)?ram-node(\d{1,4})")
"""Of the memory of a NUMA node, as libvirt calls it."""


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
    return sorted(filter(_is_memory, blocks), key=lambda block: -block.length)


def _is_memory(block: RamBlock) -> bool:
    """By its name."""
    return block.name not in FIRMWARE and "/" not in block.name.removeprefix("/objects/")


def memory_blocks(blocks: Sequence[RamBlock]) -> list[RamBlock]:
    """Those that are the guest's memory, in their order there: with NUMA, one for each node.

    The stream lists blocks by their size. The order of nodes is known where blocks carry addresses
    (x-ignore-shared: with nodes, where a block begins in the whole memory), or libvirt's names
    (`ram-node0`). Raises LayoutError where it is not.
    """
    found = candidates(blocks)
    if not found:
        names = ", ".join(block.name for block in blocks) or "none"
        raise LayoutError(f"none of the RAM blocks is the guest's memory: {names}")
    ordered = found if len(found) == 1 else _by_address(found) or _by_node(found)
    if not ordered:
        names = ", ".join(block.name for block in found)
        message = f"memory is in several blocks ({names}), and their order is not known"
        options = " ".join(f"--block {block.name}" for block in found[:2])
        raise LayoutError(f"{message}; name those of the guest's memory in order: {options} ...")
    return ordered


def _by_address(blocks: Sequence[RamBlock]) -> list[RamBlock]:
    """In the order of their addresses, where one follows the other; else none."""
    if any(block.address is None for block in blocks):
        return []
    ordered = sorted(blocks, key=lambda block: block.address or 0)
    starts = accumulate((block.length for block in ordered[:-1]), initial=0)
    fits = all(block.address == start for block, start in zip(ordered, starts, strict=True))
    return ordered if fits else []


def _by_node(blocks: Sequence[RamBlock]) -> list[RamBlock]:
    """Those with libvirt's names for memory of a node, in order; others are plugged in."""
    named = [(NODE_NAME.fullmatch(block.name), block) for block in blocks]
    nodes = [(int(match[1]), block) for match, block in named if match]
    return [block for _, block in sorted(nodes, key=itemgetter(0))]


def regions(
    machine: str, blocks: Sequence[RamBlock], max_below_4g: int | None = None
) -> list[Region]:
    """Where the guest sees its memory: `blocks`, one behind the other.

    By the machine's type, around the holes that it has; a single block where the stream says that
    it is (x-ignore-shared), if that is not where that type has its memory. `max_below_4g`: what the
    machine was given as max-ram-below-4g. Raises LayoutError.
    """
    length = sum(block.length for block in blocks)
    address = blocks[0].address if len(blocks) == 1 else None
    if not address and any(not _is_memory(block) for block in blocks):
        names = ", ".join(block.name for block in blocks if not _is_memory(block))
        raise LayoutError(f"where the guest sees RAM block {names} is not known: extract it as raw")
    try:
        found = _layout(machine, length, max_below_4g)
    except LayoutError:
        if address is None:
            raise
        found = []
    if address is not None and (not found or found[0].address != address):
        if address + length > 1 << 64:
            raise LayoutError(f"RAM block {blocks[0].name} at {address:#x}: no such address")
        return [Region(0, length, address)]
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
