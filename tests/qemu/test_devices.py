"""Device state of real QEMUs, taken apart by their own descriptions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.devices.fields import Decoder, Field, leaves

from tests.qemu.machine import Machine, vmferry
from tests.streams import read_file

UUID = "00112233-4455-6677-8899-aabbccddeeff"
DISK = ("-blockdev", "null-co,node-name=disk,size=1048576,read-zeroes=on")
ON_PCI = (
    *("-device", "virtio-blk-pci,drive=disk", "-device", "ahci"),
    *("-device", "virtio-net-pci,romfile=", "-device", "e1000,romfile="),
    *("-device", "qemu-xhci", "-device", "usb-tablet"),
    # Has a structure of one version among others.
    *("-device", "ipmi-bmc-sim,id=bmc", "-device", "isa-ipmi-kcs,bmc=bmc"),
)
DEVICES = {
    "pc": ON_PCI,
    "q35": ON_PCI,
    "microvm": (
        *("-device", "virtio-blk-device,drive=disk"),
        *("-device", "virtio-net-device", "-device", "virtio-rng-device"),
    ),
}
NAMES = {
    "pc": ("virtio-blk", "ahci", "virtio-net", "e1000", "xhci", "usb-ptr", "ipmi-interface"),
    "q35": ("virtio-blk", "ahci", "virtio-net", "e1000", "xhci", "usb-ptr", "ipmi-interface"),
    "microvm": ("virtio-blk", "virtio-net", "virtio-rng"),
}


def start(version: str, folder: Path, machine: str, *options: str) -> Machine:
    # A clock of the guest's own: the host's would go on while the guest is stopped.
    clock = ("-rtc", "clock=vm,base=2020-02-02T02:02:02")
    options = (*DISK, *DEVICES[machine], *clock, "-uuid", UUID, *options)
    return Machine(version, folder, *options, machine=machine)


def registers(machine: Machine) -> dict[str, int]:
    told = machine.ask("human-monitor-command", **{"command-line": "info registers"})
    return {name: int(value, 16) for name, value in re.findall(r"(E[A-Z]+)=([0-9a-f]{8})", told)}


def flat(fields: tuple[Field, ...]) -> dict[str, Any]:
    return {path: field.value for path, field in leaves(fields)}


@pytest.mark.parametrize("stopped", [False, True], ids=["live", "stopped"])
@pytest.mark.parametrize("machine", list(DEVICES))
def test_every_device(version: str, machine: str, stopped: bool, tmp_path: Path) -> None:
    """Broken: the state of a QEMU's device could not be shown, or be shown wrong."""
    stream = tmp_path / "stream"
    source = start(version, tmp_path / "source", machine)
    try:
        source.wait_for_beats()
        if stopped:
            source.ask("stop")
        source.migrate(f"exec:cat > {stream}")
        known = registers(source)
    finally:
        source.stop()
    checked = vmferry("verify", str(stream))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    found = read_file(stream)
    (description,) = [event for event in found if isinstance(event, events.Description)]
    devices = [event for event in found if isinstance(event, events.DeviceSection)]
    decoder = Decoder(description)
    for section in devices:
        fields = decoder.decode(section)
        assert "undescribed" not in [field.type for field in fields]
        assert sum(field.size for field in fields) == len(section.payload)
    names = [section.name.rpartition("/")[2] for section in devices]
    for name in NAMES[machine]:
        assert any(name in found_name for found_name in names), (name, names)
    (cpu,) = [section for section in devices if section.name == "cpu"]
    values = flat(decoder.decode(cpu))
    order = [known[name] for name in ("EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI")]
    assert values["env.regs"].tolist()[:8] == order
    assert (values["env.eip"], values["env.eflags"]) == (known["EIP"], known["EFL"])
    (state,) = [section for section in devices if section.name == "globalstate"]
    run_state = flat(decoder.decode(state))["runstate"].rstrip(b"\0")
    assert run_state == (b"paused" if stopped else b"running")


def test_configuration(version: str, tmp_path: Path) -> None:
    """Broken: the configuration would not be taken apart as QEMU describes it."""
    stream = tmp_path / "stream"
    source = start(version, tmp_path / "source", "q35")
    try:
        validate = {"capability": "validate-uuid", "state": True}
        source.ask("migrate-set-capabilities", capabilities=[validate])
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    dumped = vmferry("dump", str(stream), "--json", "--devices", "configuration")
    fields = json.loads(dumped.stdout)["configuration"]["fields"]
    if version == "7.2":
        assert [field["type"] for field in fields] == ["undescribed"]
        return
    assert [field["name"] for field in fields] == ["len", "name", "configuration/uuid"]
    assert bytes.fromhex(fields[1]["value"]).startswith(b"pc-q35-10")
    (uuid,) = fields[2]["fields"]
    data = stream.read_bytes()[uuid["offset"] : uuid["offset"] + uuid["size"]]
    assert data.hex() == UUID.replace("-", "")


@pytest.mark.parametrize("machine", list(DEVICES))
def test_diff(version: str, machine: str, tmp_path: Path) -> None:
    """Broken: what a stock QEMU changed, or left as it was, could not be told."""
    streams = [tmp_path / name for name in ("first", "again", "later")]
    source = start(version, tmp_path / "source", machine)
    try:
        source.wait_for_beats()
        source.ask("stop")
        source.migrate(f"exec:cat > {streams[0]}")
        source.ask("cont")
        source.wait_for_beats()
        source.ask("stop")
        source.migrate(f"exec:cat > {streams[2]}")
    finally:
        source.stop()
    incoming = f"exec:cat {streams[0]}"
    stock = start(version, tmp_path / "stock", machine, "-S", "-incoming", incoming)
    try:
        stock.wait_for("completed")
        stock.migrate(f"exec:cat > {streams[1]}")
    finally:
        stock.stop()
    equal = vmferry("diff", str(streams[0]), str(streams[1]))
    assert (equal.returncode, equal.stdout) == (0, "equal: RAM and devices\n")
    against = vmferry("verify", str(streams[0]), "--against", str(streams[1]))
    assert against.returncode == 0, against.stdout + against.stderr
    differ = vmferry("diff", "--json", str(streams[0]), str(streams[2]))
    assert differ.returncode == 1
    found = json.loads(differ.stdout)
    changed = {f"{d['device']}/{f['path']}" for d in found["devices"] for f in d["fields"]}
    assert "timer/cpu_clock_offset" in changed
    assert found["differing_pages"] >= 16
    assert "cpu/env.regs[1]" in changed
