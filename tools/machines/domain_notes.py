"""Describe hardware that only the XML of a libvirt domain has."""

from __future__ import annotations

from collections.abc import Iterator

from ..sources.domain import Domain


def domain_notes(domain: Domain) -> Iterator[str]:
    """Yield lines from the domain XML on hardware that the stream does not describe."""
    root = domain.root
    cpu = root.find("cpu")
    if cpu is not None:
        model = cpu.findtext("model") or ""
        yield f"cpu {cpu.get('mode', '')} {_line(model)}".rstrip()
    for disk in root.iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        where = "" if source is None else next(iter(source.attrib.values()), "")
        name = "" if target is None else target.get("dev", "")
        yield f"disk {_line(name)} ({disk.get('device', 'disk')}): {_line(where)}"
    for interface in root.iterfind("devices/interface"):
        mac, source = interface.find("mac"), interface.find("source")
        address = "" if mac is None else mac.get("address", "")
        where = "" if source is None else next(iter(source.attrib.values()), "")
        yield f"network {_line(address)} ({interface.get('type', '')}): {_line(where)}"


def _line(text: str) -> str:
    """Return the text on one line, because it is shown in a comment."""
    return " ".join(text.split())
