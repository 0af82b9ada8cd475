"""Read the paths of PCI devices in the names of device sections."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...protocol import events

USUAL_ROOT = "0000:00"
"""The root bus of machines whose host bridge gives PCI domain and bus: a PC, `virt`."""
_SPAPR_ROOT = re.compile("pci@800000020000([0-9a-f]{3})")
"""The root bus of a host bridge of a pseries machine, with the number of the bridge."""
_NUMBERED_ROOT = re.compile("0000:([0-9a-f]{2})")
"""A root bus by its number: 0, or that of an expander bridge."""
PCI = re.compile(
    r"(0000:[0-9a-f]{2}|pci(?:\.[0-9]+|@[0-9a-f]+)?):"
    r"([0-9a-f]{2}\.[0-7](?::[0-9a-f]{2}\.[0-7])*)(?:/(.*))?"
)
"""Path of a PCI device: the root bus, the devices and functions from there on, then a path inside
the device.
"""


def pci_place(path: str, sections: Sequence[events.DeviceSection], own_root: str) -> str:
    """Return the properties that put a PCI device at `path`, in a machine with these sections.

    `own_root`: the name of the machine's own root bus, or "" if it has no other.
    """
    match = PCI.fullmatch(path)
    assert match is not None
    *bridges, place = match[2].split(":")
    bus = root_bus(match[1]) or own_root
    if bridges:
        bus = id_of(f"{match[1]}:{':'.join(bridges)}")
    slot, function = place.split(".")
    paths = [section.name.rpartition("/")[0] for section in sections]
    others = [f"{path[: -len(place)]}{slot}.{n}" for n in range(1, 8)]
    several = function == "0" and any(other in paths for other in others)
    where = f",bus={bus}" if bus else ""
    return f"{where},addr={place}" + (",multifunction=on" if several else "")


def has_other_roots(sections: Sequence[events.DeviceSection]) -> bool:
    """Return whether PCI devices are behind other host bridges than the machine's own."""
    matches = (PCI.match(section.name) for section in sections)
    return len({match[1] for match in matches if match is not None}) > 1


def root_bus(root: str) -> str:
    """Return the name of a root bus for the property `bus`, or "" for the machine's own."""
    spapr = _SPAPR_ROOT.fullmatch(root)
    if spapr is not None:
        number = int(spapr[1], 16)
        return f"{host_bridge_id(number)}.0" if number else ""
    # The root bus of an expander bridge is named in the path of what is behind the bridge alone.
    return "" if _NUMBERED_ROOT.fullmatch(root) else root


def host_bridge_id(number: int) -> str:
    """Return the id of a host bridge of a pseries machine, which is not the first, number 0."""
    return f"host{number}"


def expander_above(path: str) -> str | None:
    """Return the path of the expander bridge that a PCI device is behind, or None.

    The path has the bus of the bridge first, and then its place on bus 0.
    """
    match = PCI.match(path)
    root = None if match is None else _NUMBERED_ROOT.fullmatch(match[1])
    if match is None or root is None or match[1] == USUAL_ROOT or ":" not in match[2]:
        return None
    return f"{match[1]}:{match[2].partition(':')[0]}"


def expander_bus(path: str) -> int:
    """Return the number of the bus of the expander bridge at `path`."""
    return int(path.split(":")[1], 16)


def id_of(path: str) -> str:
    """Return the id that the device at `path` gets."""
    text = re.sub("[^0-9A-Za-z-]", "_", path.removeprefix(f"{USUAL_ROOT}:").replace(":", "-"))
    if text.startswith("pci"):
        return text
    return f"pci{text}" if PCI.fullmatch(path) else f"at-{text.lstrip('_')}"
