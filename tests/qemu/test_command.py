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
"""Files that the comments ask for, under the names used there."""

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
    "expander, iommu and sound": (
        "10",
        "x86_64",
        (
            *("-machine", "q35,kernel-irqchip=split", "-m", "64"),
            *("-device", "intel-iommu,intremap=on"),
            *("-device", "virtio-net-pci,disable-legacy=on,iommu_platform=on"),
            *("-device", "pxb-pcie,bus_nr=128,id=px"),
            *("-device", "pcie-root-port,bus=px,id=rp,chassis=7"),
            *(
                "-device",
                "virtio-blk-pci,bus=rp,drive=disk1",
                "-device",
                "ich9-intel-hda,bus=pcie.0",
            ),
            *("-device", "hda-duplex,audiodev=sound", "-audiodev", "none,id=sound"),
        ),
    ),
    "usb storage and i82551": (
        "7.2",
        "x86_64",
        (
            *("-machine", "q35", "-m", "64", "-device", "qemu-xhci,id=u"),
            *("-device", "usb-storage,drive=disk2,bus=u.0", "-device", "usb-hub,bus=u.0,port=2"),
            *("-device", "usb-kbd,bus=u.0,port=2.3", "-device", "i82551"),
        ),
    ),
    "nvdimm": (
        "7.2",
        "x86_64",
        (
            *("-machine", "q35,nvdimm=on", "-m", "64,slots=2,maxmem=4G"),
            *("-object", "memory-backend-ram,id=nv,size=128M", "-device", "nvdimm,memdev=nv"),
        ),
    ),
    "microvm with pcie": (
        "7.2",
        "x86_64",
        ("-machine", "microvm,pcie=on", "-m", "64", "-device", "virtio-net-pci"),
    ),
    "arm with an iommu": (
        "10",
        "aarch64",
        (
            *("-machine", "virt,gic-version=3,iommu=smmuv3", "-cpu", "cortex-a57", "-m", "64"),
            *("-device", "pcie-root-port,id=rp,chassis=1", "-device", "virtio-net-pci"),
            *("-device", "virtio-blk-pci,bus=rp,drive=disk1"),
        ),
    ),
    "riscv": (
        "7.2",
        "riscv64",
        (
            *("-machine", "virt", "-m", "64", "-smp", "2", "-device", "virtio-net-pci"),
            *("-device", "virtio-blk-device,drive=disk1"),
            *("-device", "pcie-root-port,id=rp,chassis=1"),
            *("-device", "qemu-xhci,bus=rp,id=u", "-device", "usb-kbd,bus=u.0"),
        ),
    ),
    "riscv of 32 bits": (
        "7.2",
        "riscv32",
        ("-machine", "virt", "-m", "64", "-bios", "none", "-device", "virtio-net-device"),
    ),
    "s390x": (
        "7.2",
        "s390x",
        (
            *("-machine", "s390-ccw-virtio", "-m", "64", "-smp", "2"),
            *("-device", "virtio-scsi-ccw,id=s", "-device", "scsi-hd,drive=disk2,bus=s.0"),
            *("-device", "virtio-net-ccw,devno=fe.1.0005", "-device", "virtio-gpu-ccw"),
        ),
    ),
    "pseries": (
        "7.2",
        "ppc64",
        (
            *("-machine", "pseries", "-m", "256", "-smp", "2", "-device", "VGA"),
            *("-device", "spapr-pci-host-bridge,index=1,id=h"),
            *("-device", "virtio-net-pci,bus=h.0", "-device", "spapr-vlan"),
            *("-device", "spapr-vscsi,id=vs", "-device", "scsi-hd,bus=vs.0,drive=disk1"),
            *("-chardev", "null,id=c", "-device", "spapr-vty,chardev=c"),
            *("-device", "pci-bridge,chassis_nr=1,id=br", "-device", "e1000,bus=br,addr=1.0"),
        ),
    ),
    "m68k": (
        "7.2",
        "m68k",
        (
            *("-machine", "virt", "-m", "64", "-device", "virtio-net-device"),
            *("-device", "virtio-blk-device,drive=disk1"),
        ),
    ),
    "ppc": ("7.2", "ppc", ("-machine", "mac99", "-m", "64", "-device", "virtio-net-pci")),
    "mips": (
        "7.2",
        "mips",
        (
            *("-machine", "malta", "-m", "64", "-device", "virtio-net-pci"),
            *("-device", "lsi53c895a,id=l", "-device", "scsi-hd,drive=disk2,bus=l.0"),
        ),
    ),
    "hppa": (
        "7.2",
        "hppa",
        (
            *("-machine", "hppa", "-m", "64", "-device", "pci-bridge,id=b,chassis_nr=2"),
            *("-device", "virtio-rng-pci,bus=b,addr=2.0"),
        ),
    ),
}


def captured(name: str, folder: Path) -> Path:
    """Return the stream of one of these guests."""
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
    for asked in ("-cpu", "-bios"):
        if asked in options:
            at = options.index(asked)
            more += options[at : at + 2]
            assert any(line.startswith(asked) for line in found["comments"])
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
