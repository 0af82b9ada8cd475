"""Families of machines whose own devices, and whose buses, are known.

`devices.json` has the sections of each family's own devices, under the name that it has here.
"""

from __future__ import annotations

from dataclasses import dataclass

PC_TARGETS = ("i386", "x86_64")
_ARM = ("aarch64", "arm")
_RISCV = ("riscv32", "riscv64")
_PPC = ("ppc", "ppc64")
_MIPS = ("mips", "mips64", "mips64el", "mipsel")


@dataclass(frozen=True)
class Slots:
    """The slots of a machine for virtio-mmio devices: the address of bus 0, and the distance of
    each bus from the one before, in bytes.
    """

    base: int
    step: int = 0x200

    def bus_at(self, address: int) -> int:
        """Return the number of the bus at an address."""
        return (address - self.base) // self.step


@dataclass(frozen=True)
class Family:
    """Machines of these `targets` whose names begin with `start`.

    `slots` has virtio-mmio devices, if there are any; `root` is the name of the machine's own PCI
    bus where its path has another.
    """

    name: str
    targets: tuple[str, ...]
    start: str
    slots: Slots | None = None
    root: str = "pcie.0"


FAMILIES = (
    Family("q35", PC_TARGETS, "pc-q35-"),
    Family("pc", PC_TARGETS, "pc-", root="pci.0"),
    Family("isapc", PC_TARGETS, "isapc"),
    Family("microvm", PC_TARGETS, "microvm", Slots(0xFEB0_0000)),
    Family("virt", _ARM, "virt-", Slots(0x0A00_0000)),
    Family("vexpress-a9", _ARM, "vexpress-a9", Slots(0x1001_3000)),
    Family("vexpress-a15", _ARM, "vexpress-a15", Slots(0x1C13_0000)),
    Family("sbsa-ref", _ARM, "sbsa-ref"),
    Family("virt of riscv", _RISCV, "virt", Slots(0x1000_1000, 0x1000)),
    Family("virt of m68k", ("m68k",), "virt-", Slots(0xFF01_0000)),
    Family("s390-ccw-virtio", ("s390x",), "s390-ccw-virtio"),
    Family("pseries", ("ppc64",), "pseries", root="pci.0"),
    Family("mac99", _PPC, "mac99"),
    Family("g3beige", _PPC, "g3beige"),
    Family("malta", _MIPS, "malta"),
    Family("hppa", ("hppa",), "hppa"),
)


def family_of(machine: str, target: str) -> Family | None:
    """Return the family of the machine with this name, in QEMU's program for `target`."""
    found = (f for f in FAMILIES if target in f.targets and machine.startswith(f.start))
    return next(found, None)
