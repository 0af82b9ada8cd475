"""`vmferry dump --command`, on streams that are known; `tests/qemu` starts what it prints."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.wire.marks import SectionType
from vmferry.tools.machines.command_line import command_for
from vmferry.tools.machines.device_table import table
from vmferry.tools.machines.draft import Told

MIB = 1 << 20


def section(name: str, instance_id: int = 0, payload: bytes = b"") -> events.DeviceSection:
    """A device's section."""
    return events.DeviceSection(0, 1, name, instance_id, 1, payload)


def told(machine: str, blocks: dict[str, int], *names: str) -> Told:
    """What a stream tells that has these RAM blocks (MiB) and device sections."""
    listed = [events.RamBlock(name, size * MIB) for name, size in blocks.items()]
    counted = [section(name, names[:at].count(name)) for at, name in enumerate(names)]
    return Told(events.Configuration(0, machine), listed, counted, None)


def options(found: Told) -> list[str]:
    """Of the command line, as one text each."""
    return [" ".join(option) for option in command_for(found, "defer").options]


def test_memory_and_processors() -> None:
    """Broken: the machine would have other memory or fewer processors than the stream."""
    found = options(told("pc-i440fx-7.2", {"pc.ram": 96}, "cpu", "cpu", "cpu_common", "hpet"))
    assert found[:4] == [
        "-machine pc-i440fx-7.2,i8042=off,vmport=off",
        "-nodefaults",
        "-m 96M",
        "-smp 2",
    ]
    found = options(told("pc-q35-7.2", {"ram-node1": 32, "ram-node0": 64}, "cpu"))
    assert "-m 96M" in found
    at = found.index("-object memory-backend-ram,id=ram-node0,size=67108864")
    assert found[at + 1] == "-numa node,memdev=ram-node0"
    assert found[at + 3] == "-numa node,memdev=ram-node1"


def test_devices_by_their_paths() -> None:
    """Broken: a device would be missing, or be at another address or bus."""
    names = (
        "0000:00:05.0/pcie-root-port",
        "0000:00:05.0:00.0/virtio-net",
        "0000:00:06.0/xhci",
        "0000:00:06.0/2/usb-ptr",
        "serial",
        "serial",
        "0000:00:1f.2/ich9_ahci",
        "0000:00:09.0/nonsense",
        "0000:00:07.0/virtio-scsi",
        "0000:00:07.0/0:3:1/scsi-disk",
    )
    command = command_for(told("pc-q35-7.2", {"pc.ram": 64}, *names), "defer")
    found = [" ".join(option[1:]) for option in command.options if option[0] == "-device"]
    assert [each.partition(",")[0] for each in found] == [
        *("pcie-root-port", "virtio-net-pci", "qemu-xhci", "usb-tablet"),
        *("isa-serial", "isa-serial", "virtio-scsi-pci", "scsi-hd"),
    ]
    assert ",bus=pci05_0,addr=00.0" in found[1]
    assert found[3] == "usb-tablet,bus=pci06_0.0,port=2"
    assert "bus=pci07_0.0,channel=0,scsi-id=3,lun=1,drive=disk" in found[7]
    assert any("which device has the section nonsense" in line for line in command.comments)


def test_names_are_no_options() -> None:
    """Broken: a name in a stream could bring options of its own, or commands of a shell."""
    machine = "pc-q35-7.2,x=$(reboot)\nreboot #"
    blocks = {"mem,size=1\n;reboot": 64, "a\nreboot/b": 1, "0000:00:03.0/`x`\nreboot": 1}
    names = ("odd\nreboot", "0000:00:03.0/a\nreboot", "virtio-mmio@0000000000000000/\nreboot")
    text = command_for(told(machine, blocks, *names), "exec:cat 'x'").text()
    lines = text.splitlines()
    while lines[0].startswith("# "):
        lines.pop(0)
    words = shlex.split("\n".join(lines).replace(" \\\n", " "))
    assert words[0] == "qemu-system-x86_64"
    assert words[words.index("-machine") + 1].startswith("pc-q35-7.2,,x=$(reboot)\nreboot #")
    assert words[words.index("-object") + 1].startswith("memory-backend-ram,id=mem,,size=1\n;")
    assert words[-2:] == ["-incoming", "exec:cat 'x'"]
    assert "reboot" not in words


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_as_it_is_called(vmferry: Any, streams: Any, option: list[str]) -> None:
    """Broken: the command would end in a traceback for a stream that tells little."""
    made = [*streams.opening(), *streams.zeros(), *streams.piece(SectionType.END)]
    stream = vmferry.write("stream", streams.to_bytes([*made, events.EndOfStream(0)]))
    ran = vmferry.call("dump", "--command", *option, stream)
    assert ran.exit_code == 0, ran.output
    if option:
        found = json.loads(ran.stdout)
        assert found["options"][-1] == ["-incoming", f"exec:cat {stream}"]
        assert found["program"] == "qemu-system-x86_64"
    else:
        assert "-machine pc-q35-7.2" in ran.stdout
    assert vmferry.call("dump", "--command", "--xml", stream).exit_code == 2


def test_the_table_makes_sense() -> None:
    """Broken: a device would be taken for another one, or the table be of one QEMU alone."""
    assert len(table().devices) > 100
    assert len(table().versions) == 2
    virtio = "1af4:1000:0001:0200:00"
    assert table().find("virtio-net", "PCI", virtio)[0].name == "virtio-net-pci"
    modern = table().find("virtio-net", "PCI", "1af4:1041:1100:0200:01")
    assert modern[0].name == "virtio-net-pci-non-transitional"
    behind = table().find("virtio-net", "PCI", "1af4:1041:1100:0200:01", deep=True)
    assert behind[0].name == "virtio-net-pci"
    assert table().find("e1000", "PCI", "8086:100c:1100:0200:03")[0].name == "e1000-82544gc"
    assert table().find("nonsense", "PCI") == []
