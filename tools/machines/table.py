"""Looks up QEMU's machines: their processors, and which of their RAM blocks is the main memory.

The table is `machines.json`, which `tests/qemu/make_machines.py` generates by querying QEMUs; it
contains their versions. A name may match several machines (`virt` of Arm, of m68k, of RISC-V),
which are distinguished by their RAM blocks and processors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ...protocol.formats.memory_image import Processor

_VERSION = re.compile(r"-\d[\w.]*$")
_VENDOR = re.compile(r"\+pve\d+$")
"""The suffix that Proxmox VE appends to a machine name."""


@dataclass(frozen=True)
class Target:
    """A type of processor. `name` is its name in QEMU's programs (`qemu-system-NAME`), `processor`
    its description in an ELF core.
    """

    name: str
    processor: Processor

    def of(self, little: bool) -> Target:
        """Return this target with the given byte order."""
        return Target(self.name, self.processor._replace(little=little))


def _target(name: str, machine: int, bits: int, *, big: bool = False) -> Target:
    return Target(name, Processor(machine, bits, not big))


TARGETS = {
    target.name: target
    for target in (
        _target("aarch64", 183, 64),
        _target("alpha", 0x9026, 64),
        _target("arm", 40, 32),
        _target("avr", 83, 32),
        _target("cris", 76, 32),
        _target("hppa", 15, 32, big=True),
        _target("i386", 3, 32),
        _target("loongarch64", 258, 64),
        _target("m68k", 4, 32, big=True),
        _target("microblaze", 189, 32, big=True),
        _target("microblazeel", 189, 32),
        _target("mips", 8, 32, big=True),
        _target("mips64", 8, 64, big=True),
        _target("mips64el", 8, 64),
        _target("mipsel", 8, 32),
        _target("nios2", 113, 32),
        _target("or1k", 92, 32, big=True),
        _target("ppc", 20, 32, big=True),
        _target("ppc64", 21, 64, big=True),
        _target("riscv32", 243, 32),
        _target("riscv64", 243, 64),
        _target("rx", 173, 32),
        _target("s390x", 22, 64, big=True),
        _target("sh4", 42, 32),
        _target("sh4eb", 42, 32, big=True),
        _target("sparc", 2, 32, big=True),
        _target("sparc64", 43, 64, big=True),
        _target("tricore", 44, 32),
        _target("x86_64", 62, 64),
        _target("xtensa", 94, 32),
        _target("xtensaeb", 94, 32, big=True),
    )
}
"""The targets by name. The numbers are those of the ELF registry (`EM_...`)."""


@dataclass(frozen=True)
class Machine:
    """An entry of the table for machines with these `names`, in programs of these `targets`.

    `memory` names the RAM blocks that are the main memory, unless a memory backend has another
    name; `others` names blocks that are not. `windows` has the address ranges that memory fills one
    after another, each with a length in bytes (the last may have None, for any); None: unknown, or
    split as on a PC.
    """

    names: frozenset[str]
    targets: tuple[str, ...]
    memory: tuple[str, ...]
    others: frozenset[str]
    windows: tuple[tuple[int, int | None], ...] | None


@dataclass(frozen=True)
class Table:
    """The table of machines. `devices` names the RAM blocks that devices create; `versions` are
    those of the queried QEMUs.
    """

    machines: tuple[Machine, ...]
    devices: frozenset[str]
    versions: tuple[str, ...]

    def find(self, name: str, target: str | None = None) -> list[Machine]:
        """Return the machines that the machine name in a stream may mean.

        If the exact name is unknown, its version is ignored (`pc-q35-99.0`, `pc-i440fx-jammy`).
        """
        bare = _VENDOR.sub("", name)
        fitting = [m for m in self.machines if target is None or target in m.targets]
        return [m for m in fitting if bare in m.names] or _of_family(fitting, bare)

    @property
    def others(self) -> frozenset[str]:
        """Return the names of blocks that are not the main memory of any machine."""
        found = self.devices.union(*(machine.others for machine in self.machines))
        return found.difference(*(machine.memory for machine in self.machines))


def _of_family(machines: Iterable[Machine], name: str) -> list[Machine]:
    """Return the machines with the newest version of the longest family name that `name` begins
    with.
    """
    found: dict[str, list[Machine]] = {}
    for machine in machines:
        for known in machine.names:
            family = _VERSION.sub("", known)
            if family != known and name.startswith(f"{family}-"):
                found.setdefault(family, []).append(machine)
    if not found:
        return []
    family = max(found, key=len)
    newest: dict[tuple[str, ...], Machine] = {}
    for machine in found[family]:
        before = newest.get(machine.targets)
        if before is None or _newest(before, family) < _newest(machine, family):
            newest[machine.targets] = machine
    return list(newest.values())


def _newest(machine: Machine, family: str) -> tuple[int, ...]:
    return max(
        tuple(map(int, re.findall(r"\d+", name.removeprefix(family))))
        for name in machine.names
        if _VERSION.sub("", name) == family
    )


@cache
def table() -> Table:
    """Return the table, which is read only once."""
    text = files(__package__).joinpath("machines.json").read_text(encoding="utf-8")
    found = json.loads(text)
    machines = tuple(
        Machine(
            frozenset(entry["names"].split()),
            tuple(entry["targets"].split()),
            tuple(entry["memory"]),
            frozenset(entry["others"]),
            tuple((at, length) for at, length in entry["ram"]) if entry.get("ram") else None,
        )
        for entry in found["machines"]
    )
    return Table(machines, frozenset(found["devices"]), tuple(found["qemu"]))


def is_of_a_device(name: str, machines: Collection[Machine]) -> bool:
    """Return whether a RAM block's name is one that a device or a machine uses for a block that is
    not main memory.

    `machines` are the possible machines; if it is empty, all machines are possible.
    """
    if "/" in name.removeprefix("/objects/"):
        return True
    if any(name in machine.memory for machine in machines):
        return False
    others = frozenset().union(*(machine.others for machine in machines))
    return name in table().devices or name in (others if machines else table().others)
