"""Add devices to a command line, by the paths and names of their sections."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...protocol import events
from ...protocol.wire.kept import pieces
from .device_properties import device_property
from .device_table import Device, table
from .draft import Draft
from .pci_identity import identity
from .pci_paths import PCI, id_of, pci_place

MIB = 1 << 20
VIDEO_SIZE = 16 * MIB

_MMIO = re.compile(r"virtio-mmio@([0-9a-f]{16})")
_MMIO_BASES = {"microvm": 0xFEB0_0000, "virt": 0x0A00_0000}
_MMIO_STEP = 0x200
_USB = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_SCSI = re.compile(r"([0-9]+):([0-9]+):([0-9]+)")


def add_devices(draft: Draft) -> None:
    """Add the devices whose sections are not the machine's own."""
    known = table().machines.get(draft.family)
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
    pci, mmio = PCI.fullmatch(path), _MMIO.fullmatch(path)
    if pci is not None and pci[2] is None:
        _add_pci_device(draft, path, sections)
    elif pci is not None:
        _add_behind(draft, path, pci[2], sections)
    elif mmio is not None and draft.family in _MMIO_BASES:
        number = (int(mmio[1], 16) - _MMIO_BASES[draft.family]) // _MMIO_STEP
        for device in _find(draft, sections, "PCI", path):
            name = device.name.removesuffix("-pci") + "-device"
            _put(draft, device, path, name, f",bus=virtio-mmio-bus.{number}")
    elif not path:
        name = next(iter(sections))
        if name in ("globalstate", "acpi_build"):
            return
        found = _find(draft, sections, "ISA", path) or _find(draft, sections, "", path)
        for device in found:
            _put(draft, device, path, device.name, "")
        if name == "slirp":
            draft.say("slirp: one of the -netdev is a user network.")
        elif not found:
            draft.say(f"{name}: what has this section is not known.")


def _find(
    draft: Draft, sections: Mapping[str, events.DeviceSection], bus: str, path: str
) -> list[Device]:
    """Return the likeliest device that has one of these sections, as a list of at most one."""
    for name, section in sections.items():
        what = identity(next(iter(pieces(section.payload)), b""))
        found = table().find(name, bus, what, deep=path.count(":") > 2)
        if found:
            if len(found) > 1:
                rest = ", ".join(device.name for device in found[1:6])
                draft.say(f"{section.name}: {found[0].name}, or one of {rest}.")
            return found[:1]
    return []


def _add_pci_device(draft: Draft, path: str, sections: Mapping[str, events.DeviceSection]) -> None:
    found = _find(draft, sections, "PCI", path)
    if not found:
        draft.say(f"{path}: which device has the section {next(iter(sections))} is not known.")
        return
    place = pci_place(path, draft.told.sections)
    _put(draft, found[0], path, found[0].name, place + _roms(draft, found[0], path))


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


def _add_behind(
    draft: Draft, path: str, inside: str, sections: Mapping[str, events.DeviceSection]
) -> None:
    """Add a device on a bus of a PCI device."""
    above = path[: -len(inside) - 1]
    scsi = _SCSI.fullmatch(inside)
    if _USB.fullmatch(inside) is not None:
        for device in _find(draft, sections, "usb-bus", path):
            _put(draft, device, path, device.name, f",bus={id_of(above)}.0,port={inside}")
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
    if match is not None and match[2] is None:
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
