"""Reads the guest's machine type, processor and plugged memory from the domain XML of a libvirt
image.

Source: libvirt's documentation, "Domain XML format".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.etree import ElementTree as Tree

from .save_image import SaveImage

_ARCHES = {
    "i686": "i386",
    "armv7l": "arm",
    "armv6l": "arm",
    "ppc64le": "ppc64",
    "x86_64": "x86_64",
}
"""QEMU's names of processor architectures, by libvirt's names that differ."""


@dataclass(frozen=True)
class Domain:
    """A libvirt domain, from its XML.

    `machine` is QEMU's name of the machine type, or "" if the XML has none; `target` is QEMU's name
    of the processor, or None; `plugged` maps the RAM block name of each plugged memory to its
    address.
    """

    root: Tree.Element = field(repr=False)
    machine: str = ""
    target: str | None = None
    plugged: dict[str, int] = field(default_factory=dict)


def domain_of(image: SaveImage | None) -> Domain | None:
    """Return the domain of a libvirt image, or None if it has no XML or its XML is not valid."""
    if image is None or image.xml is None or "<!" in image.xml.replace("<!--", ""):
        # libvirt writes no declarations, and the entities they define could expand beyond memory.
        return None
    try:
        root = Tree.fromstring(image.xml)
    except Tree.ParseError:
        return None
    kind = root.find("os/type")
    machine, arch = "", ""
    if kind is not None:
        machine, arch = kind.get("machine", ""), kind.get("arch", "")
    return Domain(root, machine, _ARCHES.get(arch, arch) or None, _plugged(root))


def _plugged(root: Tree.Element) -> dict[str, int]:
    """Return the addresses of plugged memory; libvirt names each backend `mem` plus the device's
    alias.
    """
    found = {}
    for memory in root.iterfind("devices/memory"):
        alias = memory.find("alias")
        places = [memory.find("address"), memory.find("target/address")]
        bases = [place.get("base") for place in places if place is not None]
        base = next((base for base in bases if base is not None), None)
        if alias is None or base is None:
            continue
        try:
            address = int(base, 0)
        except ValueError:
            continue
        if 0 <= address < 1 << 64:
            found[f"mem{alias.get('name', '')}"] = address
    return found
