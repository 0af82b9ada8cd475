"""What the domain XML of a libvirt image says of the guest's machine.

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
"""QEMU's names of processors, where libvirt has others."""


@dataclass(frozen=True)
class Domain:
    """A libvirt domain: QEMU's name of its machine and of its processor, "" and None where the XML
    does not say; `plugged`: addresses of memory that is plugged in, by the name of its RAM block.
    """

    root: Tree.Element = field(repr=False)
    machine: str = ""
    target: str | None = None
    plugged: dict[str, int] = field(default_factory=dict)


def domain_of(image: SaveImage | None) -> Domain | None:
    """Return the domain of a libvirt image; None: there is none, or its XML is no XML."""
    if image is None or image.xml is None or "<!" in image.xml.replace("<!--", ""):
        # libvirt writes no declarations; what they declare could be larger than memory.
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
    """libvirt calls a backend `mem` and the device's alias."""
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
