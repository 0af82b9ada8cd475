"""Finds the RAM blocks of a stream that are the guest's main memory, and their guest addresses.

The stream itself has hardly any data on this; both follow from the machine, by the table of
`machines`. The split of a PC's memory was taken from QEMU 7.2 and 10.0 (`info mtree -f`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import itemgetter

from ...guest.sizes import format_size
from ...protocol.events import RamBlock
from ...protocol.formats.memory_image import Region
from ..console.failure import CommandError
from .families import PC_TARGETS
from .table import Machine, is_of_a_device, table

GIB = 1 << 30
ABOVE_4G = 4 * GIB
ADDRESS_HOLE = 0xFD_0000_0000
"""The start of the address hole below 1 TiB: on some hosts, RAM that would reach it begins at 1 TiB
instead of 4 GiB.
"""
PC = frozenset(PC_TARGETS)
"""The targets whose memory is split around a hole."""

NODE_NAME = re.compile(r"(?:/objects/)?ram-node(\d{1,4})")
"""The name that libvirt gives the memory of a NUMA node."""


class LayoutError(CommandError):
    """Raised if the memory layout cannot be determined; the message is one line."""


@dataclass(frozen=True)
class Guest:
    """The facts that determine a guest's memory layout, apart from its blocks.

    `machine` is the machine type, or ""; `target` is the target of its QEMU, if known; `base` is
    the address at which memory begins, if the user gave it; `max_below_4g` is the machine's option
    max-ram-below-4g; `plugged` has the addresses of memory that was plugged in, by block name.
    """

    machine: str = ""
    target: str | None = None
    base: int | None = None
    max_below_4g: int | None = None
    plugged: Mapping[str, int] = field(default_factory=dict)

    @property
    def machines(self) -> list[Machine]:
        """Return the machines in the table that this one may be."""
        if not self.machine:
            return []
        return table().find(self.machine, self.target) or table().find(self.machine)

    def of(self, target: str | None) -> Guest:
        """Return the guest with this target, if its own was unknown and the table has such a
        machine.
        """
        found = replace(self, target=target)
        known = table().find(self.machine, target)
        return found if self.target is None and known else self


@dataclass(frozen=True)
class Choice:
    """A choice of the RAM blocks that are the guest's memory.

    `main` has the blocks of the main memory in the order of their addresses, or None if the RAM
    blocks are not sufficient to determine it. `others` has the blocks that may be plugged-in
    memory, in the order of the stream.
    """

    main: list[RamBlock] | None
    others: list[RamBlock]


def choose(blocks: Sequence[RamBlock], machines: Sequence[Machine] = ()) -> Choice:
    """Choose the main memory from the blocks of a stream, by the names that machines and devices
    use.

    The order of several memory backends (NUMA) is known if blocks have addresses (x-ignore-shared:
    with nodes, the offset of a block in the whole memory), or libvirt's names (`ram-node0`). Raises
    LayoutError if no block can be memory.
    """
    found = {block.name: block for block in blocks}
    possible = [block for block in blocks if not is_of_a_device(block.name, machines)]
    names = [machine.memory for machine in machines or table().machines if machine.memory]
    fitting = [each for each in names if all(name in found for name in each)]
    if fitting:
        best = max(fitting, key=lambda each: sum(found[name].length for name in each))
        main = [found[name] for name in best]
        return Choice(main, [block for block in possible if block not in main])
    if not found:
        raise LayoutError("the stream has no RAM blocks")
    if not possible:
        listed = ", ".join(found)
        raise LayoutError(
            f"none of the RAM blocks is the guest's memory: {listed}; name it by --block"
        )
    ordered = possible if len(possible) == 1 else _by_address(possible) or _by_node(possible)
    if not ordered:
        return Choice(None, possible)
    return Choice(ordered, [block for block in possible if block not in ordered])


def memory_blocks(blocks: Sequence[RamBlock], machines: Sequence[Machine] = ()) -> list[RamBlock]:
    """Return the blocks of the main memory in the order of their addresses; with NUMA, one for each
    node.

    Raises LayoutError if the RAM blocks are not sufficient to determine them.
    """
    found = choose(blocks, machines)
    if found.main is None:
        raise unknown_order(sorted(found.others, key=lambda block: -block.length))
    return found.main


def unknown_order(blocks: Sequence[RamBlock]) -> LayoutError:
    """Return the error to raise if all of these blocks may be memory."""
    names = ", ".join(block.name for block in blocks)
    options = " ".join(f"--block {block.name}" for block in blocks[:2])
    return LayoutError(
        f"memory is in several blocks ({names}), and their order is not known; name those of the "
        f"guest's memory in order: {options} ..."
    )


def _by_address(blocks: Sequence[RamBlock]) -> list[RamBlock]:
    """Return the blocks in the order of their addresses, or none unless they are contiguous."""
    if any(block.address is None for block in blocks):
        return []
    ordered = sorted(blocks, key=lambda block: block.address or 0)
    starts = accumulate((block.length for block in ordered[:-1]), initial=0)
    fits = all(block.address == start for block, start in zip(ordered, starts, strict=True))
    return ordered if fits else []


def _by_node(blocks: Sequence[RamBlock]) -> list[RamBlock]:
    """Return the blocks with libvirt's names for nodes, in their order; other blocks are plugged
    in.
    """
    named = [(NODE_NAME.fullmatch(block.name), block) for block in blocks]
    nodes = [(int(match[1]), block) for match, block in named if match]
    return [block for _, block in sorted(nodes, key=itemgetter(0))]


def regions(guest: Guest, blocks: Sequence[RamBlock]) -> list[Region]:
    """Return the guest addresses of `blocks`, which are in the guest's memory one after another.

    They follow from the machine and its holes. A single block is at the address in the stream
    (x-ignore-shared) if that is not where the machine has its memory. Raises LayoutError.
    """
    length = sum(block.length for block in blocks)
    address = blocks[0].address if len(blocks) == 1 else None
    machines = guest.machines
    devices = [block.name for block in blocks if is_of_a_device(block.name, machines)]
    if not address and devices and guest.base is None:
        names, option = ", ".join(devices), f"--block {devices[0]}@ADDRESS"
        raise LayoutError(
            f"where the guest sees RAM block {names} is not known: say it by {option}, or extract "
            "it as raw"
        )
    try:
        found = _layout(guest, length)
    except LayoutError:
        if address is None:
            raise
        found = []
    if address is not None and (not found or found[0].address != address):
        return [at(blocks[0], address)]
    return found


def at(block: RamBlock, address: int, start: int = 0) -> Region:
    """Return a whole block as the guest sees it at an address. Raises LayoutError if the block does
    not fit there.
    """
    if address + block.length > 1 << 64:
        raise LayoutError(f"RAM block {block.name} at {address:#x}: no such address")
    return Region(start, block.length, address)


def _layout(guest: Guest, length: int) -> list[Region]:
    if guest.base is not None:
        if guest.base + length > 1 << 64:
            raise LayoutError(f"{format_size(length)} at {guest.base:#x}: no such address")
        return [Region(0, length, guest.base)]
    machines = guest.machines
    if not machines:
        name = f"machine {guest.machine}" if guest.machine else "a machine without a name"
        what = "--base ADDRESS" if guest.machine else "its --machine, or --base ADDRESS"
        raise LayoutError(
            f"the memory layout of {name} is not known: say {what}, or extract it as raw"
        )
    if all(PC.issuperset(machine.targets) for machine in machines):
        return _pc_layout(guest, length)
    layouts = {machine.windows for machine in machines}
    if len(layouts) > 1:
        targets = sorted({target for machine in machines for target in machine.targets})
        raise LayoutError(
            f"{guest.machine} is a machine of several processors, which have memory at other "
            f"addresses: say --arch {' or '.join(targets)}, or --base ADDRESS"
        )
    windows = layouts.pop()
    if windows is None:
        raise LayoutError(
            f"where machine {guest.machine} has its memory is not known: say --base ADDRESS, or "
            "extract it as raw"
        )
    if None not in (room for _, room in windows):
        known = sum(room or 0 for _, room in windows)
        if length > known:
            raise LayoutError(
                f"where machine {guest.machine} has more memory than {format_size(known)} is not "
                "known: say --base ADDRESS, or extract it as raw"
            )
    return _fill(windows, length)


def _fill(windows: Iterable[tuple[int, int | None]], length: int) -> list[Region]:
    found, start = [], 0
    for address, room in windows:
        size = length - start if room is None else min(room, length - start)
        if size > 0:
            found.append(Region(start, size, address))
            start += size
    return found


def _pc_layout(guest: Guest, length: int) -> list[Region]:
    below = min(length, _below_4g(guest, length))
    if below == length:
        return [Region(0, length, 0)]
    if ABOVE_4G + length - below > ADDRESS_HOLE:
        raise LayoutError("RAM reaches the address hole below 1 TiB: its addresses are not known")
    return [Region(0, below, 0), Region(below, length - below, ABOVE_4G)]


def _below_4g(guest: Guest, length: int) -> int:
    """Return the number of bytes below the PCI hole, if there is more memory than that."""
    machine, limit = guest.machine, guest.max_below_4g
    if machine.startswith("pc-q35-"):
        # Less than 2.75 GiB is not split.
        below = 0xB000_0000 if length < 0xB000_0000 else 2 * GIB
        return min(below, limit or below)
    if machine == "microvm":
        return min(3 * GIB, limit or 3 * GIB)
    if machine.startswith(("pc-", "isapc")):
        # Less than 3.5 GiB is not split.
        below = limit or 0xE000_0000
        return below if length < below or _is_old_pc(machine) else min(below, 3 * GIB)
    raise LayoutError(
        f"where machine {machine} has its memory is not known: say --base ADDRESS, or extract it "
        "as raw"
    )


def _is_old_pc(machine: str) -> bool:
    """Return whether the machine is from before 2.0, or ISA only: its RAM is not split at a whole
    GiB.
    """
    version = re.fullmatch(r"isapc|pc-(?:i440fx-)?([01])\.\d+", machine)
    return version is not None
