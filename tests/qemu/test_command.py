"""`dump --command`: the command line that it prints takes the stream in a stock QEMU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.qemu.machine import BareMachine, qemu_command, vmferry

DISKS = [
    option
    for number in range(1, 10)
    for option in (
        "-blockdev",
        f"driver=null-co,node-name=disk{number},size=1048576,read-zeroes=on",
    )
]
"""What the comments ask for, under the names that they have for it."""

GUESTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pc with disks and screen": (
        "7.2",
        "x86_64",
        (
            *("-machine", "pc", "-m", "64", "-smp", "2", "-device", "VGA"),
            *("-device", "virtio-net-pci", "-device", "virtio-blk-pci,drive=disk1"),
            *("-device", "virtio-balloon-pci", "-serial", "null", "-device", "virtio-gpu-pci"),
        ),
    ),
    "q35 behind root ports": (
        "7.2",
        "x86_64",
        (
            *("-machine", "q35", "-m", "64", "-smp", "3", "-device", "VGA,vgamem_mb=32"),
            *("-device", "pcie-root-port,id=rp,chassis=1,addr=05.0"),
            *("-device", "virtio-net-pci,bus=rp,romfile="),
            *("-device", "virtio-scsi-pci,id=s", "-device", "scsi-hd,bus=s.0,drive=disk1"),
            *("-device", "scsi-cd,bus=s.0,scsi-id=3,drive=disk2", "-device", "virtio-rng-pci"),
        ),
    ),
    "q35 of 10, usb": (
        "10",
        "x86_64",
        (
            *("-machine", "q35", "-m", "64", "-device", "qemu-xhci,id=u", "-device", "usb-tablet"),
            *("-device", "usb-kbd", "-device", "e1000e", "-device", "nec-usb-xhci,id=v"),
            *("-device", "pcie-root-port,id=rp,chassis=1,addr=08.0,multifunction=on"),
            *("-device", "pcie-root-port,id=rq,chassis=2,addr=08.1"),
            *("-device", "virtio-blk-pci,bus=rq,drive=disk1"),
        ),
    ),
    "pc of 10, bridge": (
        "10",
        "x86_64",
        (
            *("-machine", "pc", "-m", "64", "-device", "pci-bridge,id=b,chassis_nr=1,addr=05.0"),
            *("-device", "e1000,bus=b,addr=01.0,romsize=524288", "-device", "VGA"),
            *("-device", "lsi53c895a,id=l", "-device", "scsi-hd,bus=l.0,drive=disk1,scsi-id=2"),
            *("-device", "piix3-usb-uhci,id=u", "-device", "usb-mouse,bus=u.0"),
        ),
    ),
    "microvm": (
        "7.2",
        "x86_64",
        (
            *("-machine", "microvm", "-m", "64", "-smp", "2"),
            *("-device", "virtio-blk-device,drive=disk1", "-device", "virtio-net-device"),
            *("-serial", "null"),
        ),
    ),
    "isapc": (
        "7.2",
        "x86_64",
        (
            *("-machine", "isapc", "-m", "32", "-device", "isa-vga", "-device", "ne2k_isa"),
            *("-serial", "null", "-serial", "null"),
        ),
    ),
    "arm": (
        "7.2",
        "aarch64",
        (
            *("-machine", "virt", "-cpu", "cortex-a57", "-m", "64", "-smp", "2"),
            *("-device", "virtio-net-pci", "-device", "virtio-blk-device,drive=disk1"),
            *("-device", "qemu-xhci,id=u", "-device", "usb-kbd"),
        ),
    ),
    "i386": (
        "10",
        "i386",
        (
            *("-machine", "pc", "-m", "48", "-device", "rtl8139", "-device", "cirrus-vga"),
            *("-device", "AC97,audiodev=sound", "-audiodev", "none,id=sound"),
        ),
    ),
    "nodes and a backend": (
        "10",
        "x86_64",
        (
            *("-machine", "q35,hpet=off,smbus=off", "-m", "96", "-smp", "2"),
            *("-object", "memory-backend-ram,id=ram-node0,size=64M"),
            *("-object", "memory-backend-ram,id=ram-node1,size=32M"),
            *("-numa", "node,memdev=ram-node0", "-numa", "node,memdev=ram-node1"),
            *("-device", "virtio-net-pci-non-transitional", "-device", "vmgenid"),
        ),
    ),
    "dimm and virtio-mem": (
        "10",
        "x86_64",
        (
            *("-machine", "q35,memory-backend=mine", "-m", "64,slots=2,maxmem=4G"),
            *("-object", "memory-backend-ram,id=mine,size=64M"),
            *("-object", "memory-backend-ram,id=more,size=128M", "-device", "pc-dimm,memdev=more"),
            *("-object", "memory-backend-ram,id=much,size=256M"),
            *("-device", "virtio-mem-pci,memdev=much"),
        ),
    ),
}


def captured(name: str, folder: Path) -> Path:
    """The stream of one of these guests."""
    version, target, options = GUESTS[name]
    stream = folder / "stream"
    command, environment = qemu_command(version, target)
    guest = BareMachine(
        [*command, "-S"], folder / "source", *DISKS, *options, environment=environment
    )
    try:
        guest.migrate(f"exec:cat > {stream}")
    finally:
        guest.stop()
    return stream


@pytest.mark.parametrize("name", GUESTS)
def test_the_command_takes_the_stream(name: str, tmp_path: Path) -> None:
    """Broken: who has nothing but a stream could not start what takes it."""
    version, target, options = GUESTS[name]
    stream = captured(name, tmp_path)
    ran = vmferry("dump", "--command", "--json", str(stream))
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["program"] == f"qemu-system-{target}"
    command, environment = qemu_command(version, target)
    # What the comments ask for: disks by the names that they have there, and the processor.
    more = [*DISKS]
    if "-cpu" in options:
        at = options.index("-cpu")
        more += options[at : at + 2]
        assert any(line.startswith("-cpu: ") for line in found["comments"])
    for need in ("audiodev", "chardev"):
        for option in (line for line in found["comments"] if f": -{need} " in line):
            value = option.rpartition("=")[2]
            more += [f"-{need}", f"{ {'audiodev': 'none', 'chardev': 'null'}[need] },id={value}"]
    given = [part for option in found["options"] for part in option]
    assert given[-2:] == ["-incoming", f"exec:cat {stream}"]
    given[-1] = "defer"
    guest = BareMachine(command, tmp_path / "target", *more, *given, environment=environment)
    try:
        guest.ask("migrate-incoming", uri=f"exec:cat {stream}")
        guest.wait_for("completed")
    finally:
        guest.stop()


def test_a_shell_takes_it(tmp_path: Path) -> None:
    """Broken: what is printed would not be a shell's command, or a name in a stream part of it."""
    stream = captured("pc with disks and screen", tmp_path)
    ran = vmferry("dump", "--command", str(stream))
    assert ran.returncode == 0, ran.stderr
    shown = tmp_path / "arguments"
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {shown}\n')
    program.chmod(0o700)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", ran.stdout], env={"PATH": path}, check=True)
    found = json.loads(vmferry("dump", "--command", "--json", str(stream)).stdout)
    assert shown.read_text().splitlines() == [p for option in found["options"] for p in option]
    assert ran.stdout.startswith("# ")
