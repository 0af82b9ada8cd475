"""Makes `tools/devices.json`: how the devices that a user can add show up in a stream.

    VMFERRY_QEMU10=... python -m tests.qemu.make_devices

Each is added to a machine that is migrated at its first instruction, with whatever backend it does
not start without; the sections and RAM blocks that the machine has not without it are its own.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vmferry.protocol import events
from vmferry.protocol.wire.kept import pieces
from vmferry.tools.machines.families import family_of
from vmferry.tools.machines.pci_identity import identity
from vmferry.tools.sources.stream_events import Behind, read_events

from tests.patience import PATIENCE
from tests.qemu.make_machines import Monitored, Program, RefusedError, programs, started

TABLE = Path(__file__).parents[2] / "tools" / "machines" / "devices.json"
PLACE = "10.0"
"""Address of the device on a PCI bus."""
SMALL = ("-m", "16")
MACHINES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("x86_64", "pc", SMALL),
    ("x86_64", "q35", SMALL),
    ("x86_64", "isapc", SMALL),
    ("x86_64", "microvm", SMALL),
    ("x86_64", "microvm,pcie=on", SMALL),
    ("aarch64", "virt", ("-cpu", "cortex-a57", *SMALL)),
    ("aarch64", "virt,gic-version=3,iommu=smmuv3", ("-cpu", "cortex-a57", *SMALL)),
    ("arm", "virt", ("-cpu", "cortex-a15", *SMALL)),
    ("arm", "vexpress-a9", SMALL),
    ("arm", "vexpress-a15", SMALL),
    ("aarch64", "sbsa-ref", ("-m", "1G")),
    ("riscv64", "virt", SMALL),
    ("riscv32", "virt", ("-bios", "none", *SMALL)),
    ("m68k", "virt", SMALL),
    ("s390x", "s390-ccw-virtio", SMALL),
    ("ppc64", "pseries", ("-m", "256")),
    ("ppc", "mac99", ("-m", "64")),
    ("ppc", "g3beige", ("-m", "64")),
    ("ppc64", "mac99", ("-m", "64")),
    ("mips", "malta", SMALL),
    ("mips64el", "malta", SMALL),
    ("hppa", "hppa", ("-m", "64")),
)
"""Machines whose own devices are noted: target, machine with switches, further options."""
HOSTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "PCI": ("x86_64", "q35", SMALL),
    "usb-bus": ("x86_64", "q35", SMALL),
    "SCSI": ("x86_64", "q35", SMALL),
    "virtio-serial-bus": ("x86_64", "q35", SMALL),
    "ISA": ("x86_64", "isapc", SMALL),
    "HDA": ("x86_64", "q35", SMALL),
    "System": ("x86_64", "q35", SMALL),
    "": ("x86_64", "q35", SMALL),
    "spapr-vio-bus": ("ppc64", "pseries", ("-m", "256")),
}
"""Target, machine and further options that a device is added to, by its bus."""
BUSES = {
    "usb-bus": ("-device", "qemu-xhci,id=usb,addr=0f.0"),
    "SCSI": ("-device", "virtio-scsi-pci,id=scsi,addr=0f.0"),
    "HDA": ("-device", "ich9-intel-hda,id=sound0,addr=0f.0"),
    "virtio-serial-bus": ("-device", "virtio-serial-pci,id=serial,addr=0f.0"),
}
"""Options that add a bus."""
BACKENDS = (
    *("-blockdev", "driver=null-co,node-name=disk,read-zeroes=on"),
    *("-chardev", "null,id=characters"),
    *("-object", "rng-builtin,id=random"),
    *("-audiodev", "none,id=sound"),
    *("-object", "memory-backend-ram,id=memory,size=16M,share=on"),
)
NEEDS = {
    "": "",
    "drive": ",drive=disk",
    "chardev": ",chardev=characters",
    "memdev": ",memdev=memory",
    "rng": ",rng=random",
    "audiodev": ",audiodev=sound",
    "chassis": ",chassis=9",
    "chassis_nr": ",chassis_nr=9",
    "drive,serial": ",drive=disk,serial=1",
}
"""Properties that a device does not start without."""

_DEVICE = re.compile(r'^name "([^"]+)"(?:, bus ([\w-]+))?', re.M)


def stream_of(guest: Monitored) -> list[events.Event]:
    """Migrate a guest. Raises RefusedError."""
    with tempfile.NamedTemporaryFile() as file:
        guest.ask("migrate", uri=f"exec:cat > {file.name}")
        deadline = time.monotonic() + PATIENCE
        while (state := guest.ask("query-migrate")).get("status") != "completed":
            if state.get("status") == "failed" or time.monotonic() > deadline:
                raise RefusedError("migration")
            time.sleep(0.01)
        # Large payloads are read from there later.
        kept = io.BytesIO(Path(file.name).read_bytes())
        return [event for event in read_events(kept) if not isinstance(event, Behind)]


def sections_of(found: list[events.Event]) -> dict[str, bytes]:
    """Return the payloads of devices by name; the last one where several have one name."""
    return {
        e.name: b"".join(pieces(e.payload)) for e in found if isinstance(e, events.DeviceSection)
    }


def counts_of(found: list[events.Event]) -> dict[str, int]:
    """Return how many devices have each name."""
    names = [e.name for e in found if isinstance(e, events.DeviceSection)]
    return {name: names.count(name) for name in names}


def blocks_of(found: list[events.Event]) -> dict[str, int]:
    """Return the sizes of RAM blocks by name."""
    listed = [event for event in found if isinstance(event, events.RamBlocks)]
    return {block.name: block.length for block in listed[0].blocks}


class Base:
    """Sections and RAM blocks that a machine has without further devices."""

    def __init__(self, found: list[events.Event]) -> None:
        self.counts = counts_of(found)
        self.blocks = blocks_of(found)


def ask_device(program: Program, device: str, bus: str, base: Base) -> dict[str, Any] | None:
    """Return what a device adds to a stream; None if it does not start, or cannot migrate."""
    place = f",addr={PLACE}" if bus == "PCI" else ""
    _, machine, options = HOSTS[bus]
    own = ("-machine", machine, *options, *BACKENDS, *BUSES.get(bus, ()))
    for needs, extra in NEEDS.items():
        try:
            with started(program, *own, "-device", f"{device}{extra}{place}") as guest:
                found = stream_of(guest)
        except RefusedError:
            continue
        counts = counts_of(found)
        names = [name for name, count in counts.items() if count > base.counts.get(name, 0)]
        brought = sections_of(found)
        roms = {k: v for k, v in blocks_of(found).items() if k not in base.blocks}
        return {
            "device": device,
            "bus": bus,
            "needs": needs,
            "sections": sorted({name.rpartition("/")[2] for name in names}),
            "identity": next((i for name in names if (i := identity(brought[name]))), ""),
            "blocks": {k.rpartition("/")[2]: v for k, v in sorted(roms.items())},
        }
    return None


def names_of(program: Program) -> list[tuple[str, str]]:
    """Return names and buses of the devices that a user can add to the hosts of this target."""
    buses = [bus for bus, (target, _, _) in HOSTS.items() if target == program.target]
    listed = subprocess.run(
        [*program.command, "-machine", HOSTS[buses[0]][1], "-device", "help"],
        env={**os.environ, **program.environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # Processors are no devices here, and a doorbell waits for a server that nobody starts.
    others = ("-cpu", "ivshmem-doorbell")
    found = [(name, bus) for name, bus in _DEVICE.findall(listed) if bus in buses]
    return [(name, bus) for name, bus in found if not name.endswith(others)]


def survey(program: Program, names: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return an entry for each of these devices."""
    bases: dict[str, Base] = {}
    for bus in {bus for _, bus in names}:
        _, machine, options = HOSTS[bus]
        with started(program, "-machine", machine, *options, *BUSES.get(bus, ())) as guest:
            bases[bus] = Base(stream_of(guest))

    def ask(device: tuple[str, str]) -> dict[str, Any] | None:
        name, bus = device
        return ask_device(program, name, bus, bases[bus])

    with ThreadPoolExecutor(4) as pool:
        return [found for found in pool.map(ask, names) if found is not None]


def note_own(
    program: Program, machine: str, more: tuple[str, ...], machines: dict[str, list[str]]
) -> None:
    """Add the sections of a machine's own devices to those of its family."""
    try:
        with started(program, "-machine", machine, *more) as guest:
            found = stream_of(guest)
    except RefusedError:
        print(f"{program.target} {program.folder}: {machine} does not start")
        return
    (named,) = (e.machine for e in found if isinstance(e, events.Configuration))
    family = family_of(named, program.target)
    assert family is not None, named
    machines[family.name] = sorted({*sections_of(found), *machines.get(family.name, [])})


def main() -> None:
    """Write the table."""
    devices: dict[str, dict[str, Any]] = {}
    machines: dict[str, list[str]] = {}
    versions = set()
    # One that was unpacked lacks modules, and dies of the list of its devices.
    hosts = {target for target, _, _ in HOSTS.values()}
    names = {target: names_of(Program(target, None)) for target in hosts}
    for program in programs():
        if program.target in names:
            with started(program, "-machine", "none") as guest:
                versions.add(guest.ask("query-version")["package"])
            for found in survey(program, names[program.target]):
                known = devices.setdefault(found["device"], found)
                # What one version does not start without, the other one takes.
                known["needs"] = known["needs"] or found["needs"]
                sizes = {*known.get("sizes", []), json.dumps(found["blocks"])}
                known["sizes"] = sorted(sizes)
        for target, machine, more in MACHINES:
            if target == program.target:
                note_own(program, machine, more, machines)
        print(program.target, program.folder, len(devices), flush=True)
    for device in devices.values():
        device["blocks"] = [json.loads(text) for text in device.pop("sizes")]
    lines = ",\n".join(json.dumps(devices[name]) for name in sorted(devices))
    head = json.dumps({"qemu": sorted(versions), "machines": machines})
    TABLE.write_text(f'{head[:-1]}, "devices": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
