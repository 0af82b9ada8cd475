"""The devices that a user can add to a machine, by what they leave in a stream.

`devices.json` is the table; `tests/qemu/make_devices.py` makes it by asking QEMUs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

VARIANTS = ("-transitional", "-non-transitional")
"""Ends of names of the same device with other properties."""
USUAL = ("usb-tablet", "usb-storage", "scsi-hd")
"""Names of those that most guests have, of devices that leave the same."""
MODERN_VIRTIO = range(0x1040, 0x1080)
"""PCI device ids of a virtio device without the interface of before virtio 1.0."""


@dataclass(frozen=True)
class Device:
    """A device by its name for -device; `bus`: what it is added to, "": nothing; `needs`:
    properties that it does not start without, parted by commas; `sections`: its sections, without
    their path; `identity`: of PCI, as `pci_identity` has it; `blocks`: sizes of its RAM blocks
    without their path, of each QEMU asked."""

    name: str
    bus: str
    needs: str
    sections: frozenset[str]
    identity: str
    blocks: tuple[dict[str, int], ...]


@dataclass(frozen=True)
class Devices:
    """All of them; `machines`: sections that a machine has of its own, by its family;
    `versions`: of the QEMUs that were asked."""

    devices: tuple[Device, ...]
    machines: dict[str, frozenset[str]]
    versions: tuple[str, ...]

    def find(self, section: str, bus: str, identity: str = "", deep: bool = False) -> list[Device]:
        """Return what may have left a section, the likeliest first.

        `deep`: it is behind a bridge, where a virtio device has no interface of before 1.0 anyway.
        """
        found = [d for d in self.devices if section in d.sections and d.bus == bus]
        exact = [device for device in found if device.identity == identity] or [
            device for device in found if identity and _kind(device.identity) == _kind(identity)
        ]
        exact = exact or found
        plain = [device for device in exact if not device.name.endswith(VARIANTS)]
        if deep and _is_modern(identity):
            plain = [device for device in found if not device.name.endswith(VARIANTS)]
        usual = {name: place for place, name in enumerate(USUAL)}
        return sorted(
            plain or exact, key=lambda d: (usual.get(d.name, len(usual)), len(d.name), d.name)
        )


def _kind(identity: str) -> list[str]:
    """Vendor, device and class."""
    parts = identity.split(":")
    return [*parts[:2], *parts[3:4]]


def _is_modern(identity: str) -> bool:
    parts = identity.split(":")
    return parts[0] == "1af4" and int(parts[1], 16) in MODERN_VIRTIO


@cache
def table() -> Devices:
    """Return the table, which is read once."""
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
