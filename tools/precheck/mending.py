"""Says which option at B's start would mend a difference, as far as it is known.

The options of devices are those that `dump --command` derives from A's stream.
"""

from __future__ import annotations

import re
from functools import cached_property

from ...protocol.errors import VmferryError
from ..machines.command_line import command_for
from ..machines.draft import Told
from ..machines.pci_paths import PCI, id_of
from .facts import Facts, Section
from .pci_space import vectors

MIB = 1 << 20

_OWN = {
    "hpet": "-machine hpet=on",
    "i8254": "-machine pit=on",
    "pcspk": "-machine pit=on",
    "vmmouse": "-machine vmport=on",
    "pckbd": "-machine i8042=on",
    "ps2kbd": "-machine i8042=on",
    "ps2mouse": "-machine i8042=on",
    "0000:00:1f.2/ich9_ahci": "-machine sata=on",
    "0000:00:1f.3/ich9_smb": "-machine smbus=on",
    "0000:00:01.2/uhci": "-machine usb=on",
    "0000:00:01.3/piix4_pm": "-machine acpi=on",
    "acpi_build": "-machine acpi=on",
    "fdc": "-device isa-fdc",
    "serial": "-serial null",
    "parallel_isa": "-parallel null",
    "slirp": "-netdev user,id=NAME",
    "kvmclock": "-accel kvm",
}
"""The options that bring the sections of a machine's own devices."""
_HOTPLUG = (
    ("piix4_pm", "PIIX4_PM.acpi-pci-hotplug-with-bridge-support"),
    ("ICH9LPC", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support"),
)
"""The chipsets' devices, and the properties that change what they save of hot-plugging."""
_ID = re.compile(r",id=[^,]*")


class Mending:
    """The options that would make B like A, whose facts these are."""

    def __init__(self, a: Facts, b: Facts) -> None:
        self._a = a
        self._b = b

    @cached_property
    def _options(self) -> list[tuple[str, ...]]:
        """Return the options of a command line for A's stream; none if it does not have any."""
        told = Told(self._a.configuration, self._a.listed, self._a.told, self._a.description)
        try:
            return command_for(told, "defer").options
        except VmferryError:
            return []

    def machine(self) -> str:
        """Return the option for A's machine."""
        return f"-machine {self._a.machine}"

    def block(self, name: str) -> str | None:
        """Return the option that brings a RAM block which B does not have."""
        path, _, last = name.rpartition("/")
        if name.startswith("/rom@etc/acpi"):
            return _OWN["acpi_build"]
        if last.endswith(".rom"):
            return f"{self._device(path) or 'the device'}, without romfile="
        if PCI.match(name):
            return self._device(path)
        backend = [" ".join(o) for o in self._options if o[0] == "-object" and _has_id(o[1], last)]
        machine = [f"-machine memory-backend={last}"] if len(backend) == 1 else []
        if "/" not in name and not backend:
            return "memory without a backend, or a backend with this name"
        return " ".join([*machine, *backend]) or None

    def size(self, name: str, length: int) -> str | None:
        """Return the option that gives a RAM block of B the size that A's has."""
        last = name.rpartition("/")[2]
        if last.endswith(".rom"):
            return f"romsize={length} (or A's romfile) for the device at {name.rpartition('/')[0]}"
        if last == "vga.vram":
            return f"vgamem_mb={length // MIB} for the device at {name.rpartition('/')[0]}"
        if name == "pc.bios":
            return f"-bios with a file of {length} bytes"
        if name.startswith("system.flash"):
            return f"-drive if=pflash with a file of {length} bytes"
        if "/" in name:
            return None
        backend = [" ".join(o) for o in self._options if o[0] == "-object" and _has_id(o[1], name)]
        return " ".join(backend) or self._first("-m")

    def section(self, section: Section) -> str | None:
        """Return the option that brings a section which B does not have."""
        name, instance_id = section.key
        if name in ("cpu", "cpu_common", "apic"):
            return self._first("-smp") or f"-smp {instance_id + 1}"
        if name in _OWN:
            return _OWN[name]
        path = name.rpartition("/")[0]
        return self._device(path) if path else self._named(name)

    def pci(self, section: Section, what: str) -> str | None:
        """Return the option that makes a PCI device of B look as A's does."""
        device = self._device(section.name.rpartition("/")[0])
        count = None if section.space is None else vectors(section.space)
        if what == "MSI-X" and count is not None:
            return f"vectors={count} for this device"
        return device

    def layout(self, section: Section, field: str) -> str | None:
        """Return the option that makes a device of B save what A's does."""
        if "memhp" in field:
            return self._first("-m")
        for name, switch in _HOTPLUG:
            if section.name.endswith(name) and "hotplug" in field:
                return f"-global {switch}=on, or off, as A has it"
        return None

    def _first(self, option: str) -> str | None:
        found = [" ".join(each) for each in self._options if each[0] == option]
        return found[0] if found else None

    def _device(self, path: str) -> str | None:
        """Return the option that adds the device at `path`."""
        match = PCI.fullmatch(path)
        # What is plugged into a machine's own controller has no id in the derived command line.
        port = "" if match is None or match[3] is None else f",port={match[3]},"
        for option in self._options:
            value = f"{option[-1]},"
            if option[0] == "-device" and (
                f",id={id_of(path)}," in value or (port and port in value)
            ):
                return f"-device {_ID.sub('', option[1])}"
        return None

    def _named(self, name: str) -> str | None:
        """Return the option that adds a device whose section has no path, if they share a name."""
        for option in self._options:
            if option[0] == "-device" and option[1].partition(",")[0] == name:
                return f"-device {option[1]}"
        return None


def _has_id(value: str, name: str) -> bool:
    return f",id={name}," in f"{value},"
