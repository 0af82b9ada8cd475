"""Read the paths of PCI devices in the names of device sections."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...protocol import events

PCI = re.compile(r"0000:00:([0-9a-f]{2}\.[0-7](?::[0-9a-f]{2}\.[0-7])*)(?:/(.*))?")
"""Path of a PCI device: the devices and functions from the root bus on, then a path inside it."""


def pci_place(path: str, sections: Sequence[events.DeviceSection]) -> str:
    """Return the properties that put a PCI device at `path`, in a machine with these sections."""
    match = PCI.fullmatch(path)
    assert match is not None
    *bridges, place = match[1].split(":")
    bus = ""
    if bridges:
        above = f"0000:00:{':'.join(bridges)}"
        bus = f",bus={id_of(above)}"
    slot, function = place.split(".")
    paths = [section.name.rpartition("/")[0] for section in sections]
    others = [f"{path[: -len(place)]}{slot}.{n}" for n in range(1, 8)]
    several = function == "0" and any(other in paths for other in others)
    return f"{bus},addr={place}" + (",multifunction=on" if several else "")


def id_of(path: str) -> str:
    """Return the id that the PCI device at `path` gets."""
    match = PCI.fullmatch(path)
    return "pci" + (match[1] if match else path).replace(":", "-").replace(".", "_")
