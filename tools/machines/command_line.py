"""Builds a QEMU command line that would accept a stream; facts that are not in it become comments.

Device sections have the path of their device (`0000:00:03.0/virtio-net`). RAM blocks, the sections
of processors and the configuration describe the machine. The table of `device_table` lists which
device writes which section.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...guest.sizes import format_size
from ...protocol import events
from ...protocol.reading.configuration import IGNORE_SHARED, MAPPED_RAM
from ...protocol.wire.kept import pieces
from ..sources.domain import Domain
from . import cpu_notes, plugged
from .device_table import Device, table
from .main_ram import Choice, Guest, LayoutError, choose, regions
from .pci_identity import identity
from .table import is_of_a_device

MIB = 1 << 20
FIRMWARE_SIZES = (128 << 10, 256 << 10)
"""The usual sizes of a PC's BIOS in bytes; they depend on its age."""
VIDEO_SIZE = 16 * MIB

_PCI = re.compile(r"0000:00:([0-9a-f]{2}\.[0-7](?::[0-9a-f]{2}\.[0-7])*)(?:/(.*))?")
_MMIO = re.compile(r"virtio-mmio@([0-9a-f]{16})")
_MMIO_BASES = {"microvm": 0xFEB0_0000, "virt": 0x0A00_0000}
_MMIO_STEP = 0x200
_USB = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_SCSI = re.compile(r"([0-9]+):([0-9]+):([0-9]+)")

_FAMILIES = {"pc-q35-": "q35", "pc-": "pc", "isapc": "isapc", "microvm": "microvm", "virt-": "virt"}
"""The names of machine families in `device_table`, by the prefix of QEMU's machine names."""
_SWITCHES = {
    "pc": {"hpet": "hpet=off", "pckbd": "i8042=off", "vmmouse": "vmport=off"},
    "q35": {
        "hpet": "hpet=off",
        "pckbd": "i8042=off",
        "vmmouse": "vmport=off",
        "0000:00:1f.2/ich9_ahci": "sata=off",
        "0000:00:1f.3/ich9_smb": "smbus=off",
        "i8254": "pit=off",
    },
}
"""The machine options that turn off a built-in device, by the section that the stream then lacks.
"""


@dataclass(frozen=True)
class Told:
    """The facts that a stream has on its machine: configuration, RAM blocks, device sections,
    description, and the libvirt domain.
    """

    configuration: events.Configuration | None
    blocks: Sequence[events.RamBlock]
    sections: Sequence[events.DeviceSection]
    description: events.Description | None
    domain: Domain | None = None


@dataclass
class Command:
    """A command line: the `program`, `options` (each with its value), and `comments`, which are
    lines on facts that the stream does not have.
    """

    program: str = "qemu-system-x86_64"
    options: list[tuple[str, ...]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the command as text for a shell."""
        # Text from the stream must not be able to add a line or an option.
        lines = [f"# {' '.join(line.split())}" for line in self.comments]
        shown = [" ".join(map(shlex.quote, option)) for option in self.options]
        return "\n".join([*lines, " \\\n  ".join([self.program, *shown])])

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys program, options (each a list of its name and its
        value), comments.
        """
        options = [list(option) for option in self.options]
        return {"program": self.program, "options": options, "comments": self.comments}


def command_for(told: Told, incoming: str) -> Command:
    """Return the command line; `incoming` is the URI from which QEMU reads the stream.

    Raises StreamError if the devices do not match their description.
    """
    return _Builder(told).build(incoming)


class _Builder:
    """Builds a command line from the facts of one stream."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._command = Command()
        domain = told.domain
        machine = told.configuration.machine if told.configuration else ""
        self._machine = machine or (domain.machine if domain else "")
        self._guest = Guest(self._machine, domain.target if domain else None)
        self._facts = plugged.look(
            [s for s in told.sections if plugged.is_told_by(s)], told.description, told.blocks
        )
        self._family = next(
            (name for start, name in _FAMILIES.items() if self._machine.startswith(start)), ""
        )
        self._used: set[str] = set()
        """The names of RAM blocks that an option creates."""
        self._ids: dict[str, str] = {}
        """The names of added devices, by their path."""
        self._media = 0

    def build(self, incoming: str) -> Command:
        """Return the complete command line, which gets the stream from `incoming`."""
        command = self._command
        self._head()
        self._memory()
        self._processors()
        self._firmware()
        self._devices()
        self._blocks_left()
        self._libvirt()
        self._add("-S")
        self._say("-S: `cont` starts the guest when it has arrived.")
        self._how_it_comes(incoming)
        return command

    def _say(self, line: str) -> None:
        self._command.comments.append(line)

    def _add(self, *option: str) -> None:
        self._command.options.append(option)

    def _head(self) -> None:
        told = self._told
        found = cpu_notes.look(
            [s for s in told.sections if s.name == cpu_notes.SECTION_NAME], told.description
        )
        guest = self._guest.of(found.target.name if found.target else None)
        names = sorted({target for machine in guest.machines for target in machine.targets})
        target = guest.target or (found.target.name if found.target else None)
        if target is None and names:
            target = "x86_64" if "x86_64" in names else names[0]
            self._say(f"The stream does not tell the processor: it may be {' or '.join(names)}.")
        if target is None:
            target = "x86_64"
            self._say("The stream does not tell the processor: qemu-system-x86_64 is a guess.")
        self._guest = guest
        self._target = target
        self._command.program = f"qemu-system-{target}"
        if not self._machine:
            self._say("The stream has no machine: say -machine NAME.")

    def _memory(self) -> None:
        told = self._told
        tables = [block.name for block in told.blocks]
        choice = self._chosen()
        main = choice.main or []
        self._used.update(block.name for block in main)
        switches = [_value(self._machine)] if self._machine else []
        if "/rom@etc/acpi/nvdimm-mem" in tables:
            switches.append("nvdimm=on")
        if "virt.secure-ram" in tables:
            switches.append("secure=on")
        own = {s.name for s in told.sections}
        switches += [s for name, s in _SWITCHES.get(self._family, {}).items() if name not in own]
        named = {name for machine in self._guest.machines for name in machine.memory}
        backends = [block for block in main if block.name not in named]
        if len(backends) == 1:
            switches.append(f"memory-backend={_id(backends[0])}")
        self._add("-machine", ",".join(switches))
        self._add("-nodefaults")
        size = sum(block.length for block in main)
        sockets = self._slots(choice)
        # Memory that is plugged in is added to the main memory, and needs room for alignment.
        virtio = [block for block in told.blocks if block.name in self._facts.virtio_mem]
        more = sum(block.length for block in [*choice.others, *virtio])
        room = size + 2 * more + (sockets << 30)
        hotplug = f",slots={sockets},maxmem={-(-room // MIB)}M" if sockets else ""
        self._add("-m", f"{-(-size // MIB)}M{hotplug}")
        if sockets:
            self._say("The stream does not tell maxmem: say what the source had, if you know it.")
        share = ",share=on" if any(block.address is not None for block in told.blocks) else ""
        for block in backends:
            self._backend(block, share)
            if len(backends) > 1:
                self._add("-numa", f"node,memdev={_id(block)}")
        self._plug(choice, share)

    def _chosen(self) -> Choice:
        blocks = self._told.blocks
        try:
            choice = choose(blocks, self._guest.machines)
        except LayoutError as error:
            self._say(f"Memory: {error}.")
            return Choice([], [])
        try:
            return plugged.settle(choice, self._facts)
        except LayoutError:
            names = ", ".join(block.name for block in choice.others)
            self._say(f"The stream does not tell the order of memory: {names} are taken for nodes.")
            return Choice(choice.others, [])

    def _slots(self, choice: Choice) -> int:
        """Return the number of DIMM slots: the chipset's state has an entry for each."""
        entries = plugged.count_slots(self._told.sections, self._told.description)
        if entries is None and (choice.others or self._facts.virtio_mem):
            return len(choice.others) + len(self._facts.virtio_mem)
        return entries or 0

    def _backend(self, block: events.RamBlock, share: str) -> None:
        size = f"size={block.length}"
        self._add("-object", f"memory-backend-ram,id={_id(block)},{size}{share}")
        self._used.add(block.name)

    def _plug(self, choice: Choice, share: str) -> None:
        seen = []
        try:
            seen = regions(self._guest, choice.main or [])
        except LayoutError:
            self._say(f"Where machine {self._machine} has its memory is not known.")
        placed = {}
        if seen:
            found, _ = plugged.place(
                self._guest, seen, choice, list(self._told.blocks), self._facts
            )
            placed = {each.block.name: each for each in found}
        # The chipset's state has no slots for NVDIMMs.
        nvdimms = len(choice.others) - (self._facts.slots or 0)
        for number, block in enumerate(choice.others):
            self._backend(block, share)
            kind = "nvdimm" if nvdimms == len(choice.others) else "pc-dimm"
            address = f",addr={placed[block.name].span[0]:#x}" if block.name in placed else ""
            self._add("-device", f"{kind},id=plugged{number},memdev={_id(block)}{address}")
            if not address:
                self._say(f"{block.name} ({kind}): the stream does not tell its slot or address.")
        for block in self._told.blocks:
            if block.name in self._facts.virtio_mem:
                self._virtio_mem(block, self._facts.virtio_mem[block.name], share)

    def _virtio_mem(
        self, block: events.RamBlock, found: plugged.Plugged | None, share: str
    ) -> None:
        path, _, name = block.name.rpartition("/")
        name = _value(name)
        self._add("-object", f"memory-backend-ram,id={name},size={block.length}{share}")
        self._used.add(block.name)
        address = f",memaddr={found.span[0]:#x}" if found is not None else ""
        size = sum(region.length for region in found.regions) if found is not None else 0
        place = self._pci_place(path) if _PCI.fullmatch(path) else ""
        options = f"virtio-mem-pci,memdev={name},requested-size={size}{address}{place}"
        self._add("-device", options)
        self._ids[path] = "virtio-mem"

    def _processors(self) -> None:
        told = self._told
        names = ("cpu", "cpu_common")
        count = max(sum(s.name == name for s in told.sections) for name in names)
        last = max((s.instance_id for s in told.sections if s.name in names), default=0)
        if count > 1:
            more = f",maxcpus={last + 1}" if last >= count else ""
            self._add("-smp", f"{count}{more}")
            self._say("-smp: the stream does not tell sockets, cores and threads.")
        if not count:
            self._say("-smp: the stream tells nothing of processors.")
        self._say("-cpu: the stream does not tell the model: say the source's, if it had one.")
        accelerator = "kvm" if any(s.name == "kvmclock" for s in told.sections) else None
        if accelerator:
            self._add("-accel", "kvm")
        else:
            self._say("-accel: say kvm or tcg, as the source had it.")

    def _firmware(self) -> None:
        for block in self._told.blocks:
            number = re.fullmatch(r"system\.flash([01])", block.name)
            if number is not None:
                self._used.add(block.name)
                name = f"flash{number[1]}"
                drive = f"if=pflash,unit={number[1]},format=raw,file={name}"
                self._add("-drive", drive + (",readonly=on" if number[1] == "0" else ""))
                self._say(f"{name}: a file of {block.length} bytes; the stream has its content.")
            elif block.name == "pc.bios" and self._family in ("pc", "q35", "isapc"):
                self._used.add(block.name)
                if block.length not in FIRMWARE_SIZES:
                    self._say(f"-bios: a file of {block.length} bytes.")

    def _devices(self) -> None:
        known = table().machines.get(self._family)
        if known is None:
            what = self._machine or "without a name"
            self._say(f"What a machine {what} has of its own is not known: its devices are too.")
        names: dict[tuple[str, str, int], dict[str, events.DeviceSection]] = {}
        for section in self._told.sections:
            own = known is None or section.name in known
            if own and not self._is_added(section, known is None):
                continue
            path, _, name = section.name.rpartition("/")
            # Each section without a path is a separate device.
            key = (path, "", 0) if path else ("", name, section.instance_id)
            names.setdefault(key, {})[name] = section
        for (path, _, _), found in names.items():
            if not path or path not in self._ids:
                self._device(path, found)

    def _is_added(self, section: events.DeviceSection, unknown: bool) -> bool:
        """Return whether a section of an unknown machine is on a bus, so its device was added."""
        return unknown and _PCI.match(section.name) is not None

    def _device(self, path: str, sections: Mapping[str, events.DeviceSection]) -> None:
        pci, mmio = _PCI.fullmatch(path), _MMIO.fullmatch(path)
        if pci is not None and pci[2] is None:
            self._pci_device(path, sections)
        elif pci is not None:
            self._behind(path, pci[2], sections)
        elif mmio is not None and self._family in _MMIO_BASES:
            number = (int(mmio[1], 16) - _MMIO_BASES[self._family]) // _MMIO_STEP
            for device in self._find(sections, "PCI", path):
                name = device.name.removesuffix("-pci") + "-device"
                self._put(device, path, name, f",bus=virtio-mmio-bus.{number}")
        elif not path:
            name = next(iter(sections))
            if name in ("globalstate", "acpi_build"):
                return
            found = self._find(sections, "ISA", path) or self._find(sections, "", path)
            for device in found:
                self._put(device, path, device.name, "")
            if name == "slirp":
                self._say("slirp: one of the -netdev is a user network.")
            elif not found:
                self._say(f"{name}: what has this section is not known.")

    def _find(
        self, sections: Mapping[str, events.DeviceSection], bus: str, path: str
    ) -> list[Device]:
        """Return the likeliest device that has one of these sections, as a list of at most one."""
        for name, section in sections.items():
            what = identity(next(iter(pieces(section.payload)), b""))
            found = table().find(name, bus, what, deep=path.count(":") > 2)
            if found:
                if len(found) > 1:
                    rest = ", ".join(device.name for device in found[1:6])
                    self._say(f"{section.name}: {found[0].name}, or one of {rest}.")
                return found[:1]
        return []

    def _pci_device(self, path: str, sections: Mapping[str, events.DeviceSection]) -> None:
        found = self._find(sections, "PCI", path)
        if not found:
            self._say(f"{path}: which device has the section {next(iter(sections))} is not known.")
            return
        self._put(found[0], path, found[0].name, self._pci_place(path) + self._roms(found[0], path))

    def _pci_place(self, path: str) -> str:
        match = _PCI.fullmatch(path)
        assert match is not None
        *bridges, place = match[1].split(":")
        bus = ""
        if bridges:
            above = f"0000:00:{':'.join(bridges)}"
            bus = f",bus={self._id_of(above)}"
        slot, function = place.split(".")
        paths = [s.name.rpartition("/")[0] for s in self._told.sections]
        others = [f"{path[: -len(place)]}{slot}.{n}" for n in range(1, 8)]
        several = function == "0" and any(other in paths for other in others)
        return f"{bus},addr={place}" + (",multifunction=on" if several else "")

    def _id_of(self, path: str) -> str:
        match = _PCI.fullmatch(path)
        return "pci" + (match[1] if match else path).replace(":", "-").replace(".", "_")

    def _roms(self, device: Device, path: str) -> str:
        """Return the properties that give the device's RAM blocks the sizes in the stream."""
        ours = {
            block.name.removeprefix(f"{path}/"): block.length
            for block in self._told.blocks
            if block.name.startswith(f"{path}/")
        }
        self._used.update(f"{path}/{name}" for name in ours)
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

    def _behind(self, path: str, inside: str, sections: Mapping[str, events.DeviceSection]) -> None:
        """Add a device on a bus of a PCI device."""
        above = path[: -len(inside) - 1]
        scsi = _SCSI.fullmatch(inside)
        if _USB.fullmatch(inside) is not None:
            for device in self._find(sections, "usb-bus", path):
                self._put(device, path, device.name, f",bus={self._id_of(above)}.0,port={inside}")
        elif scsi is not None and "scsi-disk" in sections:
            place = f",channel={scsi[1]},scsi-id={scsi[2]},lun={scsi[3]}"
            if "lsi" in self._ids.get(above, ""):
                place = f",scsi-id={scsi[2]}"
            self._media += 1
            options = f"scsi-hd,bus={self._id_of(above)}.0{place},drive=disk{self._media}"
            self._add("-device", options)
            self._say(f"{path}: a scsi-hd, or a scsi-cd; -blockdev for its disk{self._media}.")
        elif scsi is None and "scsi-disk" not in sections:
            self._say(f"{path}: which device this is is not known.")

    def _put(self, device: Device, path: str, name: str, place: str) -> None:
        """Add a -device option for the device."""
        options = name
        self._ids[path] = device.name
        match = _PCI.fullmatch(path)
        if match is not None and match[2] is None:
            options += f",id={self._id_of(path)}"
        if "root-port" in name and "chassis" not in device.needs:
            options += self._need("chassis", path)
        for need in filter(None, device.needs.split(",")):
            options += self._need(need, path or name)
        self._add("-device", options + place)
        if name.startswith("virtio-serial"):
            self._say(f"{path}: the virtserialport and virtconsole that the source had at {name}.")
        if any(word in name for word in ("net", "e1000", "rtl8139", "ne2k", "vmxnet")):
            self._say(f"{path or name}: a -netdev for {name}, with the source's features.")

    def _need(self, need: str, where: str) -> str:
        """Return the text of a property that the device requires, and add a comment on what it
        refers to.
        """
        if need in ("chassis", "chassis_nr"):
            self._media += 1
            return f",{need}={self._media}"
        if need == "serial":
            return ",serial=1"
        self._media += 1
        kind = {"drive": "disk", "memdev": "memory"}.get(need, need)
        option = {
            "drive": "-blockdev driver=file,filename=FILE,node-name",
            "chardev": "-chardev null,id",
            "rng": "-object rng-random,id",
            "audiodev": "-audiodev none,id",
            "memdev": "-object memory-backend-ram,size=SIZE,id",
        }[need]
        name = f"{kind}{self._media}"
        self._say(f"{where}: {option}={name}")
        return f",{need}={name}"

    def _blocks_left(self) -> None:
        for block in self._told.blocks:
            plain = is_of_a_device(block.name, self._guest.machines)
            if block.name in self._used or (plain and not _PCI.match(block.name)):
                continue
            if block.name.rpartition("/")[0] not in self._ids:
                size = format_size(block.length)
                self._say(f"RAM block {block.name} ({size}): what brings it is not known.")

    def _libvirt(self) -> None:
        domain = self._told.domain
        if domain is None:
            return
        self._say("A libvirt image: `virsh restore` takes it. Of its XML:")
        for line in _of_domain(domain):
            self._say(f"  {line}")

    def _how_it_comes(self, incoming: str) -> None:
        configuration = self._told.configuration
        wanted = configuration.capabilities if configuration and configuration.capabilities else ()
        names = [name for name in wanted if name in (IGNORE_SHARED, MAPPED_RAM)]
        if not names:
            self._add("-incoming", incoming)
            return
        self._add("-incoming", "defer")
        for name in names:
            self._say(f"(qemu) migrate_set_capability {name} on")
        self._say(f"(qemu) migrate_incoming {incoming}")


def _id(block: events.RamBlock) -> str:
    """Return the id of the block's memory backend."""
    return _value(block.name.removeprefix("/objects/"))


def _value(text: str) -> str:
    """Return the text as an option value, with doubled commas because commas separate options."""
    return text.replace(",", ",,")


def _rom(name: str) -> bool:
    return name.endswith(".rom")


def _of_domain(domain: Domain) -> Iterator[str]:
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
