"""Add devices to a command line, by the paths and names of their sections."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...protocol import events
from ...protocol.wire.kept import pieces
from .bus_options import add_host_bridges, on_system_bus, place_on_pci, vio_place
from .device_properties import device_property
from .device_table import Device, is_modern, table
from .draft import Draft
from .pci_identity import identity
from .pci_paths import PCI, id_of

MIB = 1 << 20
VIDEO_SIZE = 16 * MIB

_USB = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_SCSI = re.compile(r"([0-9]+):([0-9]+):([0-9]+)")
_UNTOLD = ("ISA", "", "System", "HDA")
"""The buses whose devices have sections without a path."""
_WITH_DISK = ("usb-storage",)
"""The devices that bring a SCSI disk of their own."""


def add_devices(draft: Draft) -> None:
    """Add the devices whose sections are not the machine's own."""
    add_host_bridges(draft)
    known = table().machines.get(draft.family_name)
    if known is None:
        what = draft.machine or "without a name"
        draft.say(f"What a machine {what} has of its own is not known: its devices are too.")
    names: dict[tuple[str, str, int], dict[str, events.DeviceSection]] = {}
    for section in draft.told.sections:
        own = known is None or section.name in known
        if own and not _is_added(section, unknown=known is None):
            continue
        path, _, name = section.name.rpartition("/")
        # Each section without a path is a separate device.
        key = (path, "", 0) if path else ("", name, section.instance_id)
        names.setdefault(key, {})[name] = section
    for (path, _, _), found in names.items():
        if not path or path not in draft.added:
            _add_device(draft, path, found)


def _is_added(section: events.DeviceSection, *, unknown: bool) -> bool:
    """Return whether a section of an unknown machine is on a bus, so its device was added."""
    return unknown and PCI.match(section.name) is not None


def _add_device(draft: Draft, path: str, sections: Mapping[str, events.DeviceSection]) -> None:
    pci, on_bus, vio = PCI.fullmatch(path), on_system_bus(draft, path), vio_place(path)
    if pci is not None and pci[3] is None:
        _add_pci_device(draft, path, sections)
    elif on_bus is not None:
        for device in _find(draft, sections, "PCI", path, ending="-pci"):
            name = device.name.removesuffix("-pci") + on_bus.ending
            _put(draft, device, path, name, on_bus.place)
    elif vio is not None:
        for device in _find(draft, sections, "spapr-vio-bus", path):
            _put(draft, device, path, device.name, vio)
    elif path:
        _add_behind(draft, path, sections)
    else:
        _add_without_path(draft, sections)


def _add_without_path(draft: Draft, sections: Mapping[str, events.DeviceSection]) -> None:
    """Add a device whose section does not name its bus."""
    name = next(iter(sections))
    if name in ("globalstate", "acpi_build"):
        return
    found = next(filter(None, (_find(draft, sections, bus, "") for bus in _UNTOLD)), [])
    for device in found:
        _put(draft, device, "", device.name, "")
    if name == "slirp":
        draft.say("slirp: one of the -netdev is a user network.")
    elif not found:
        draft.say(f"{name}: what has this section is not known.")


def _find(
    draft: Draft,
    sections: Mapping[str, events.DeviceSection],
    bus: str,
    path: str,
    ending: str = "",
) -> list[Device]:
    """Return the likeliest device that has one of these sections, as a list of at most one.

    Its name has this `ending`.
    """
    known = {name: _identity(section) for name, section in sections.items()}
    named = _named_by_rom(draft, path)
    # A section that says what the device is goes first.
    for name in sorted(sections, key=lambda name: not known[name]):
        found = named or table().find(name, bus, known[name], deep=_is_deep(path))
        found = [device for device in found if device.name.endswith(ending)]
        if found:
            if len(found) > 1:
                rest = ", ".join(device.name for device in found[1:6])
                draft.say(f"{sections[name].name}: {found[0].name}, or one of {rest}.")
            return found[:1]
    return []


def _identity(section: events.DeviceSection) -> str:
    return identity(next(iter(pieces(section.payload)), b""))


def _is_deep(path: str) -> bool:
    """Return whether a PCI device is behind a bridge."""
    match = PCI.match(path)
    return match is not None and ":" in match[2]


def _named_by_rom(draft: Draft, path: str) -> list[Device]:
    """Return the virtio device after which the RAM block of its ROM is named, as a list of at most
    one. ROMs of other devices have the name of their state, which several devices share.
    """
    names = (b.name.removeprefix(f"{path}/").removesuffix(".rom") for b in draft.told.blocks)
    ours = [name for name in names if name.startswith("virtio-")]
    return [device for device in table().devices if device.name in ours][:1]


def _add_pci_device(draft: Draft, path: str, sections: Mapping[str, events.DeviceSection]) -> None:
    found = _find(draft, sections, "PCI", path)
    if not found:
        draft.say(f"{path}: which device has the section {next(iter(sections))} is not known.")
        return
    place = place_on_pci(draft, path)
    modern = _modern(found[0], path, sections)
    _put(draft, found[0], path, found[0].name, place + modern + _roms(draft, found[0], path))


def _modern(device: Device, path: str, sections: Mapping[str, events.DeviceSection]) -> str:
    """Return the property that a virtio device has whose legacy interface was switched off."""
    legacy = device.identity and not is_modern(device.identity)
    modern = any(is_modern(_identity(section)) for section in sections.values())
    return ",disable-legacy=on" if legacy and modern and not _is_deep(path) else ""


def _roms(draft: Draft, device: Device, path: str) -> str:
    """Return the properties that give the device's RAM blocks the sizes in the stream."""
    ours = {
        block.name.removeprefix(f"{path}/"): block.length
        for block in draft.told.blocks
        if block.name.startswith(f"{path}/")
    }
    draft.used.update(f"{path}/{name}" for name in ours)
    usual = [size for sizes in device.blocks for name, size in sizes.items() if _rom(name)]
    rom = [size for name, size in ours.items() if _rom(name)]
    text = ""
    if usual and not rom:
        text += ",romfile="
    elif rom and any(size != rom[0] for size in usual):
        text += f",romsize={rom[0]}"
    video = ours.get("vga.vram", VIDEO_SIZE)
    if video != VIDEO_SIZE:
        text += f",vgamem_mb={video // MIB}"
    return text


def _add_behind(draft: Draft, path: str, sections: Mapping[str, events.DeviceSection]) -> None:
    """Add a device on a bus of another device."""
    above, _, inside = path.rpartition("/")
    scsi = _SCSI.fullmatch(inside)
    if _USB.fullmatch(inside) is not None:
        # The machine's own controllers have no id.
        bus = f",bus={id_of(above)}.0" if above in draft.added else ""
        for device in _find(draft, sections, "usb-bus", path):
            _put(draft, device, path, device.name, f"{bus},port={inside}")
    elif any(
        section.name in (f"{above}/{name}" for name in _WITH_DISK)
        for section in draft.told.sections
    ):
        # The disk belongs to the device.
        draft.added[path] = "scsi-hd"
    elif scsi is not None and "scsi-disk" in sections:
        place = f",channel={scsi[1]},scsi-id={scsi[2]},lun={scsi[3]}"
        if "lsi" in draft.added.get(above, ""):
            place = f",scsi-id={scsi[2]}"
        disk = f"disk{draft.next_number()}"
        options = f"scsi-hd,bus={id_of(above)}.0{place},drive={disk}"
        draft.add("-device", options)
        draft.say(f"{path}: a scsi-hd, or a scsi-cd; -blockdev for its {disk}.")
    elif scsi is None and "scsi-disk" not in sections:
        draft.say(f"{path}: which device this is is not known.")


def _put(draft: Draft, device: Device, path: str, name: str, place: str) -> None:
    """Add a -device option for the device."""
    options = name
    draft.added[path] = device.name
    match = PCI.fullmatch(path)
    # What is plugged into another device has no id: nothing is plugged into that.
    if path and (match is None or match[3] is None):
        options += f",id={id_of(path)}"
    if "root-port" in name and "chassis" not in device.needs:
        options += device_property(draft, "chassis", path)
    for need in filter(None, device.needs.split(",")):
        options += device_property(draft, need, path or name)
    draft.add("-device", options + place)
    if name.startswith("virtio-serial"):
        draft.say(f"{path}: the virtserialport and virtconsole that the source had at {name}.")
    if any(word in name for word in ("net", "e1000", "rtl8139", "ne2k", "vmxnet")):
        draft.say(f"{path or name}: a -netdev for {name}, with the source's features.")


def _rom(name: str) -> bool:
    return name.endswith(".rom")
