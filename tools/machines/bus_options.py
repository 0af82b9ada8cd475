"""Add host bridges to a command line, and say how a device sits on a bus of the machine itself."""

from __future__ import annotations

import re
from typing import NamedTuple

from .draft import Draft
from .pci_paths import (
    expander_above,
    expander_bus,
    has_other_roots,
    host_bridge_id,
    id_of,
    pci_place,
)

_MMIO = re.compile(r"virtio-mmio@([0-9a-f]{16})")
_CCW = re.compile(r"/([0-9a-f]{1,2}\.[0-3]\.[0-9a-f]{4})")
_VIO = re.compile(r"(v-scsi|l-lan|vty)@([0-9a-f]{8})")
_SPAPR_WINDOWS = "spapr_iommu"
"""The section of a DMA window of a pseries machine.

Its instance is 0x80000000, the number of the host bridge times 256, and the number of the window.
"""


def place_on_pci(draft: Draft, path: str) -> str:
    """Return the properties that put a PCI device at `path`."""
    sections, family = draft.told.sections, draft.family
    # QEMU would choose another root bus than the machine's own, if there are others.
    own_root = family.root if family is not None and has_other_roots(sections) else ""
    return pci_place(path, sections, own_root)


class OnBus(NamedTuple):
    """The options that put a device, which also exists for PCI, on another bus.

    `ending`: the end of its name there, in place of `-pci`; `place`: the properties that place it.
    """

    ending: str
    place: str


def add_host_bridges(draft: Draft) -> None:
    """Add the PCI host bridges beside the machine's own."""
    numbers = {
        s.instance_id >> 8 & 0xFF
        for s in draft.told.sections
        if s.name == _SPAPR_WINDOWS and s.instance_id & 1 << 31
    }
    for number in sorted(numbers - {0}):
        bridge = f"spapr-pci-host-bridge,index={number},id={host_bridge_id(number)}"
        draft.add("-device", bridge)
    above = {expander_above(section.name) for section in draft.told.sections}
    for path in sorted(path for path in above if path is not None):
        place = place_on_pci(draft, path)
        draft.add("-device", f"pxb-pcie,bus_nr={expander_bus(path)},id={id_of(path)}{place}")


def on_system_bus(draft: Draft, path: str) -> OnBus | None:
    """Return how a virtio device at `path` is added, or None if that is no bus of the machine."""
    mmio, ccw, family = _MMIO.fullmatch(path), _CCW.fullmatch(path), draft.family
    if mmio is not None and family is not None and family.slots is not None:
        number = family.slots.bus_at(int(mmio[1], 16))
        return OnBus("-device", f",bus=virtio-mmio-bus.{number}")
    return None if ccw is None else OnBus("-ccw", f",devno={ccw[1]}")


def vio_place(path: str) -> str | None:
    """Return the property that puts a virtual device of a pseries machine at `path`, if it is one.

    The stream names the devices by what they are in the guest's device tree.
    """
    match = _VIO.fullmatch(path)
    return None if match is None else f",reg=0x{match[2]}"
