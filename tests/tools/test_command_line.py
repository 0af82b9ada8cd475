"""`vmferry dump --command`, on streams that are known; `tests/qemu` starts what it prints."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.tools.machines.command_line import command_for
from vmferry.tools.machines.device_table import table
from vmferry.tools.machines.draft import Told

from tests import streams

MIB = 1 << 20


def section(name: str, instance_id: int = 0, payload: bytes = b"") -> events.DeviceSection:
    """Return a device's section."""
    return streams.device(1, name, payload, instance_id)


def told(machine: str, blocks: dict[str, int], *names: str) -> Told:
    """Return what is known of a stream that has these RAM blocks (MiB) and device sections."""
    listed = [events.RamBlock(name, size * MIB) for name, size in blocks.items()]
    counted = [section(name, names[:at].count(name)) for at, name in enumerate(names)]
    return Told(events.Configuration(0, machine), listed, counted, None)


def options(found: Told) -> list[str]:
    """Return the options of a command line, each as one text."""
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


@pytest.mark.parametrize(
    ("machine", "name", "added"),
    [
        ("pseries-7.2", "pci@800000020000000:02.0/virtio-net", "virtio-net-pci,{id},addr=02.0"),
        (
            "pseries-7.2",
            "pci@800000020000003:01.0:02.0/virtio-net",
            "virtio-net-pci,{id},bus=pci_800000020000003-01_0,addr=02.0",
        ),
        ("pseries-7.2", "pci@800000020000003:01.0/e1000", "e1000,{id},bus=host3.0,addr=01.0"),
        ("pseries-7.2", "v-scsi@71000001/spapr_vscsi", "spapr-vscsi,{id},reg=0x71000001"),
        ("s390-ccw-virtio-7.2", "/fe.1.0005/virtio-net", "virtio-net-ccw,{id},devno=fe.1.0005"),
        ("s390-ccw-virtio-7.2", "/fe.0.0001/virtio-gpu", "virtio-gpu-ccw,{id},devno=fe.0.0001"),
        ("malta", "pci:12.0/virtio-net", "virtio-net-pci,{id},bus=pci,addr=12.0"),
        ("mac99", "pci.2:0d.0/virtio-net", "virtio-net-pci,{id},bus=pci.2,addr=0d.0"),
        (
            "vexpress-a15",
            "virtio-mmio@000000001c130600/virtio-net",
            "virtio-net-device,{id},bus=virtio-mmio-bus.3",
        ),
        (
            "virt-7.2",
            "virtio-mmio@000000000a003e00/virtio-net",
            "virtio-net-device,{id},bus=virtio-mmio-bus.31",
        ),
        (
            "microvm",
            "virtio-mmio@00000000feb02e00/virtio-net",
            "virtio-net-device,{id},bus=virtio-mmio-bus.23",
        ),
    ],
)
def test_buses_of_other_machines(machine: str, name: str, added: str) -> None:
    """Broken: a device would be on another bus than in the stream, or be missing."""
    found = options(told(machine, {"ram": 64}, name))
    (device,) = (option.removeprefix("-device ") for option in found if "-device " in option)
    first, id_, *rest = device.split(",")
    assert id_.startswith("id=")
    where = [part for part in rest if "rom" not in part]
    assert ",".join([first, "{id}", *where]) == added


def test_host_bridges() -> None:
    """Broken: what is behind a further host bridge would have no bus."""
    windows = [section("spapr_iommu", 1 << 31 | bridge << 8) for bridge in (0, 3)]
    found = told("pseries-7.2", {"ppc_spapr.ram": 64})
    made = options(replace(found, sections=windows))
    assert [o for o in made if "bridge" in o] == ["-device spapr-pci-host-bridge,index=3,id=host3"]
    found = told("pc-q35-7.2", {"pc.ram": 64}, "0000:80:04.0:00.0/pcie-root-port")
    bridge, port = (option for option in options(found) if "-device" in option)
    assert bridge == "-device pxb-pcie,bus_nr=128,id=pci0000-80-04_0,addr=04.0"
    assert ",bus=pci0000-80-04_0,addr=00.0" in port
    # Without the name of its bus, QEMU would put a device behind the newest bridge.
    names = ("pci@800000020000000:02.0/e1000", "pci@800000020000003:02.0/e1000")
    placed = [o for o in options(told("pseries-7.2", {"ppc_spapr.ram": 64}, *names)) if "e10" in o]
    assert [option.partition(",bus=")[2][:5] for option in placed] == ["pci.0", "host3"]


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
def test_as_it_is_called(vmferry: Any, option: list[str]) -> None:
    """Broken: the command would end in a traceback for a stream that tells little."""
    made = [*streams.opening(), *streams.zeros(), *streams.closing([])[:-1]]
    stream = vmferry.write("stream", streams.to_bytes(made))
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
