"""Pairs of QEMUs that differ in one thing, and what keeps the stream of one from the other."""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.tools.precheck.findings import Kind

PC, Q35 = "pc-i440fx-7.2", "pc-q35-7.2"
NULL = "driver=null-co,read-zeroes=on,size=1048576,node-name"


@dataclass(frozen=True)
class Side:
    """A QEMU with these options beside those of `Machine`; {folder} has option ROMs."""

    options: str = ""
    machine: str = PC


@dataclass(frozen=True)
class Pair:
    """Two QEMUs, and what the first obstacle for each one's stream at the other is, if any."""

    a: Side
    b: Side
    there: Kind | None = None
    back: Kind | None = None


def _differing(a: str, b: str, there: Kind | None, back: Kind | None, machine: str = PC) -> Pair:
    return Pair(Side(a, machine), Side(b, machine), there, back)


def _other_network_card(name: str) -> Pair:
    a, b = f"-device e1000,addr=9{name}", f"-device rtl8139,addr=9{name}"
    return _differing(a, b, Kind.NO_SECTION, Kind.NO_SECTION)


NIC, VIRTIO, DISK = "-device e1000,addr=9", "-device virtio-net-pci,addr=9", f"-blockdev {NULL}=d"
VIRTIO_BLK = f"{DISK} -device virtio-blk-pci,drive=d,addr=9"
USB = "-device piix3-usb-uhci,id=u,addr=9"
SOUND = "-audiodev none,id=s -device intel-hda,addr=9"

PAIRS: dict[str, Pair] = {
    "the same": Pair(Side(), Side()),
    "machine version": Pair(Side(), Side("", "pc-i440fx-6.2"), Kind.MACHINE, Kind.MACHINE),
    "machine family": Pair(Side(), Side("", Q35), Kind.MACHINE, Kind.MACHINE),
    "memory": _differing("", "-m 64", Kind.BLOCK_SIZE, Kind.BLOCK_SIZE),
    "name of the memory": _differing(
        "",
        "-object memory-backend-ram,id=mine,size=32M -machine memory-backend=mine",
        Kind.NO_BLOCK,
        Kind.NO_BLOCK,
    ),
    "slots for memory": _differing("-m 32,slots=2,maxmem=1G", "", Kind.LAYOUT, Kind.LAYOUT),
    "video memory": _differing("", "-global VGA.vgamem_mb=8", Kind.BLOCK_SIZE, Kind.BLOCK_SIZE),
    "other video card": _differing(
        "-device cirrus-vga,addr=9",
        "-device secondary-vga,addr=9",
        Kind.BLOCK_SIZE,
        Kind.BLOCK_SIZE,
    ),
    "no option ROM": _differing(NIC, f"{NIC},romfile=", Kind.NO_BLOCK, None),
    "larger option ROM": _differing(
        NIC, f"{NIC},romfile={{folder}}/large.rom", Kind.BLOCK_SIZE, Kind.BLOCK_SIZE
    ),
    "smaller option ROM": _differing(
        NIC, f"{NIC},romfile={{folder}}/small.rom", Kind.BLOCK_SIZE, Kind.BLOCK_SIZE
    ),
    "larger BIOS": _differing("", "-bios {folder}/large.bios", Kind.BLOCK_SIZE, Kind.BLOCK_SIZE),
    "other network card": _other_network_card(""),
    "other network card without ROM": _other_network_card(",romfile="),
    "other chip of the same card": _differing(
        f"{NIC},romfile=", "-device e1000-82544gc,addr=9,romfile=", Kind.PCI, Kind.PCI
    ),
    "other slot": _differing(NIC, "-device e1000,addr=0xa", Kind.NO_SECTION, Kind.NO_SECTION),
    "acpi_index": _differing(f"{NIC},acpi-index=3", NIC, None, None),
    "hotplug behind bridges": _differing(
        "",
        "-global PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off",
        Kind.LAYOUT,
        Kind.LAYOUT,
    ),
    "hotplug behind bridges of q35": _differing(
        "", "-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off", None, None, Q35
    ),
    "no hpet": _differing("", "-machine hpet=off", Kind.NO_SECTION, None),
    "no vmport": _differing("", "-machine vmport=off", Kind.NO_SECTION, None),
    "no timer": _differing("", "-machine pit=off", Kind.NO_SECTION, None),
    "no ACPI": _differing("", "-machine acpi=off", Kind.NO_BLOCK, None),
    "fewer processors": _differing("-smp 2", "-smp 1", Kind.NO_INSTANCE, None),
    "room for processors": _differing("-smp 1", "-smp 1,maxcpus=4", None, None),
    "other processor": _differing("-cpu qemu64", "-cpu Nehalem", None, None),
    "one more serial port": _differing("-serial null", "", Kind.NO_INSTANCE, None),
    "no USB": _differing(USB, "", Kind.NO_SECTION, None),
    "other USB": _differing(
        "-device qemu-xhci,addr=9", "-device usb-ehci,addr=9", Kind.NO_SECTION, Kind.NO_SECTION
    ),
    "no USB tablet": _differing(f"{USB} -device usb-tablet", USB, Kind.NO_SECTION, None),
    "other USB port": _differing(
        f"{USB} -device usb-tablet,port=1",
        f"{USB} -device usb-tablet,port=2",
        Kind.NO_SECTION,
        Kind.NO_SECTION,
    ),
    "queues of virtio-net": _differing(f"{VIRTIO},mq=on,vectors=10", VIRTIO, Kind.PCI, Kind.PCI),
    "vectors of virtio-net": _differing(f"{VIRTIO},vectors=8", VIRTIO, Kind.PCI, Kind.PCI),
    "modern virtio-net": _differing(f"{VIRTIO},disable-legacy=on", VIRTIO, Kind.PCI, Kind.PCI),
    "features of virtio-net": _differing(f"{VIRTIO},event_idx=off", VIRTIO, None, None),
    "size of a queue": _differing(f"{VIRTIO},rx_queue_size=1024", VIRTIO, None, None),
    "no virtio-blk": _differing(VIRTIO_BLK, "", Kind.NO_SECTION, None),
    "queues of virtio-blk": _differing(
        f"{VIRTIO_BLK},num-queues=4", f"{VIRTIO_BLK},num-queues=1", Kind.PCI, Kind.PCI
    ),
    "no SCSI disk": _differing(
        f"{DISK} -device virtio-scsi-pci,addr=9 -device scsi-hd,drive=d",
        "-device virtio-scsi-pci,addr=9",
        Kind.NO_SECTION,
        None,
    ),
    "no sound codec": _differing(
        f"{SOUND} -device hda-duplex,audiodev=s", SOUND, Kind.NO_SECTION, None
    ),
    "user network": _differing(f"-netdev user,id=n {NIC},netdev=n", NIC, Kind.NO_SECTION, None),
    "one more card and a port": _differing("", f"{NIC} -parallel null", None, Kind.NO_SECTION),
    "behind a port": _differing(
        "-device pcie-root-port,id=r,chassis=1,addr=9 -device e1000e,bus=r",
        "-device e1000e,addr=9",
        Kind.NO_SECTION,
        Kind.NO_SECTION,
        Q35,
    ),
    "no random numbers": _differing("-device virtio-rng-pci", "", Kind.NO_SECTION, None),
    "no vmcoreinfo": _differing("-device vmcoreinfo", "", Kind.NO_SECTION, None),
}
"""The pairs by what differs."""
