"""Looks up the devices that a user can add to a machine by the sections they write to a stream.

The table is `devices.json`, which `tests/qemu/make_devices.py` generates by querying QEMUs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

VARIANTS = ("-transitional", "-non-transitional")
"""The suffixes in names of the same device with other properties."""
USUAL = ("usb-tablet", "usb-storage", "scsi-hd", "hda-duplex")
"""The names of the devices that most guests have, among devices that write the same sections."""
MODERN_VIRTIO = range(0x1040, 0x1080)
"""The PCI device ids of virtio devices without the legacy interface from before virtio 1.0."""


@dataclass(frozen=True)
class Device:
    """A device that a user can add to a machine.

    `name` is its name for -device; `bus` is the bus it is added to, or ""; `needs` lists the
    properties that it requires, separated by commas; `sections` has its sections without their
    path; `identity` is its PCI identity in the format of `pci_identity`; `blocks` has the sizes of
    its RAM blocks, without their path, in each queried QEMU.
    """

    name: str
    bus: str
    needs: str
    sections: frozenset[str]
    identity: str
    blocks: tuple[dict[str, int], ...]


@dataclass(frozen=True)
class Devices:
    """The table of devices. `machines` has the sections that each machine family has of its own;
    `versions` are those of the queried QEMUs.
    """

    devices: tuple[Device, ...]
    machines: dict[str, frozenset[str]]
    versions: tuple[str, ...]

    def find(self, section: str, bus: str, identity: str = "", deep: bool = False) -> list[Device]:
        """Return the devices that may have written a section, the likeliest first.

        `deep` means that the device is behind a bridge, where a virtio device never has the legacy
        interface.
        """
        found = [d for d in self.devices if section in d.sections and d.bus == bus]
        exact = [device for device in found if device.identity == identity] or [
            device for device in found if identity and _kind(device.identity) == _kind(identity)
        ]
        exact = exact or found
        plain = [device for device in exact if not device.name.endswith(VARIANTS)]
        if deep and is_modern(identity):
            plain = [device for device in found if not device.name.endswith(VARIANTS)]
        usual = {name: place for place, name in enumerate(USUAL)}
        return sorted(
            plain or exact, key=lambda d: (usual.get(d.name, len(usual)), len(d.name), d.name)
        )


def _kind(identity: str) -> list[str]:
    """Return vendor, device and class of a PCI identity."""
    parts = identity.split(":")
    return [*parts[:2], *parts[3:4]]


def is_modern(identity: str) -> bool:
    """Return whether a PCI identity is that of a virtio device without the legacy interface."""
    parts = identity.split(":")
    return len(parts) > 1 and parts[0] == "1af4" and int(parts[1], 16) in MODERN_VIRTIO


@cache
def table() -> Devices:
    """Return the table, which is read only once."""
    text = files(__package__).joinpath("devices.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return Devices(
        tuple(
            Device(
                entry["device"],
                entry["bus"],
                entry["needs"],
                frozenset(entry["sections"]),
                entry["identity"],
                tuple(entry["blocks"]),
            )
            for entry in found["devices"]
        ),
        {name: frozenset(sections) for name, sections in found["machines"].items()},
        tuple(found["qemu"]),
    )
