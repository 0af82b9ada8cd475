"""Makes `tools/devices.json`: how the devices that a user can add show up in a stream.

    VMFERRY_QEMU10=... python -m tests.qemu.make_devices

Each is added to a machine that is migrated at its first instruction, with whatever backend it does
not start without; the sections and RAM blocks that the machine has not without it are its own.
"""

from __future__ import annotations

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
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.wire.kept import pieces
from vmferry.tools.machines.pci_identity import identity

from tests.patience import PATIENCE
from tests.qemu.make_machines import Monitored, Program, RefusedError, programs, started

TABLE = Path(__file__).parents[2] / "tools" / "machines" / "devices.json"
PLACE = "10.0"
"""Of the device, on a PCI bus."""
MACHINES = (
    ("x86_64", "pc", ()),
    ("x86_64", "q35", ()),
    ("x86_64", "isapc", ()),
    ("x86_64", "microvm", ()),
    ("aarch64", "virt", ("-cpu", "cortex-a57")),
    ("arm", "virt", ("-cpu", "cortex-a15")),
)
"""Machines whose own devices are noted."""
HOSTS = {
    "PCI": "q35",
    "usb-bus": "q35",
    "SCSI": "q35",
    "virtio-serial-bus": "q35",
    "ISA": "isapc",
    "": "q35",
}
"""By the bus of a device, the machine of x86_64 that it is added to."""
BUSES = {
    "usb-bus": ("-device", "qemu-xhci,id=usb,addr=0f.0"),
    "SCSI": ("-device", "virtio-scsi-pci,id=scsi,addr=0f.0"),
    "virtio-serial-bus": ("-device", "virtio-serial-pci,id=serial,addr=0f.0"),
}
"""What brings a bus."""
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
        reader = StreamReader()
        return reader.feed(Path(file.name).read_bytes()) + reader.close()


def sections_of(found: list[events.Event]) -> dict[str, bytes]:
    """Payloads of devices by name; of several of one name, of the last."""
    return {
        e.name: b"".join(pieces(e.payload)) for e in found if isinstance(e, events.DeviceSection)
    }


def counts_of(found: list[events.Event]) -> dict[str, int]:
    """How many devices have each name."""
    names = [e.name for e in found if isinstance(e, events.DeviceSection)]
    return {name: names.count(name) for name in names}


def blocks_of(found: list[events.Event]) -> dict[str, int]:
    """Sizes of RAM blocks by name."""
    listed = [event for event in found if isinstance(event, events.RamBlocks)]
    return {block.name: block.length for block in listed[0].blocks}


class Base:
    """What a machine has of its own."""

    def __init__(self, found: list[events.Event]) -> None:
        self.counts = counts_of(found)
        self.blocks = blocks_of(found)


def ask_device(
    program: Program, machine: str, device: str, bus: str, base: Base
) -> dict[str, Any] | None:
    """What it brings; None: it does not start, or cannot migrate."""
    place = f",addr={PLACE}" if bus == "PCI" else ""
    own = ("-machine", machine, "-m", "16", *BACKENDS, *BUSES.get(bus, ()))
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
    """Names and buses of the devices that a user can add."""
    listed = subprocess.run(
        [*program.command, "-machine", "pc", "-device", "help"],
        env={**os.environ, **program.environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # Processors are no devices here, and a doorbell waits for a server that nobody starts.
    others = ("-cpu", "ivshmem-doorbell")
    found = [(name, bus) for name, bus in _DEVICE.findall(listed) if bus in HOSTS]
    return [(name, bus) for name, bus in found if not name.endswith(others)]


def survey(program: Program, names: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Of each of these devices."""
    bases: dict[str, Base] = {}
    for bus, machine in HOSTS.items():
        with started(program, "-machine", machine, "-m", "16", *BUSES.get(bus, ())) as guest:
            bases[bus] = Base(stream_of(guest))

    def ask(device: tuple[str, str]) -> dict[str, Any] | None:
        name, bus = device
        return ask_device(program, HOSTS[bus], name, bus, bases[bus])

    with ThreadPoolExecutor(4) as pool:
        return [found for found in pool.map(ask, names) if found is not None]


def main() -> None:
    """Write the table."""
    devices: dict[str, dict[str, Any]] = {}
    machines: dict[str, list[str]] = {}
    versions = set()
    # One that was unpacked lacks modules, and dies of the list of its devices.
    names = names_of(Program("x86_64", None))
    for program in programs():
        if program.target == "x86_64":
            with started(program, "-machine", "none") as guest:
                versions.add(guest.ask("query-version")["package"])
            for found in survey(program, names):
                known = devices.setdefault(found["device"], found)
                # What one version does not start without, the other one takes.
                known["needs"] = known["needs"] or found["needs"]
                sizes = {*known.get("sizes", []), json.dumps(found["blocks"])}
                known["sizes"] = sorted(sizes)
        for target, machine, more in MACHINES:
            if target == program.target:
                with started(program, "-machine", machine, "-m", "16", *more) as guest:
                    own = set(sections_of(stream_of(guest)))
                machines[machine] = sorted(own.union(machines.get(machine, [])))
        print(program.target, program.folder, len(devices), flush=True)
    for device in devices.values():
        device["blocks"] = [json.loads(text) for text in device.pop("sizes")]
    lines = ",\n".join(json.dumps(devices[name]) for name in sorted(devices))
    head = json.dumps({"qemu": sorted(versions), "machines": machines})
    TABLE.write_text(f'{head[:-1]}, "devices": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
