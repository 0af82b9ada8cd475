"""Guests that are no PCs: pages of other sizes, and sections that only they have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from vmferry.protocol import events
from vmferry.protocol.section_events import HtabChunk, HtabHeader, StorageAttributes
from vmferry.protocol.wire.storage_attributes import AttributeFlag

from tests.patience import wait_until
from tests.qemu.machine import BareMachine, qemu_command, vmferry
from tests.streams import read_file, to_bytes


def start(version: str, target: str, folder: Path, *options: str) -> BareMachine:
    command, environment = qemu_command(version, target)
    return BareMachine(command, folder, *options, environment=environment)


def call(*arguments: str) -> str:
    ran = vmferry(*arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


# 7.2 ends with a division by zero where a guest's pages are larger than the host's. No QEMU has a
# machine whose pages have 64 KiB, and of those with 16 KiB (loongarch64 of 7.2) none can migrate:
# what an aarch64 guest's own tables say is not what its stream's pages have.
@pytest.mark.parametrize(
    ("version", "target", "options", "block", "address", "page_size"),
    [
        ("7.2", "avr", ("-machine", "arduino-uno"), "flash", 0, 256),
        ("7.2", "arm", ("-machine", "highbank", "-m", "16"), "highbank.dram", 0, 1024),
        ("10", "sparc64", ("-machine", "sun4u", "-m", "16"), "sun4u.ram", 0, 8192),
    ],
)
def test_page_sizes(
    version: str,
    target: str,
    options: tuple[str, ...],
    block: str,
    address: int,
    page_size: int,
    tmp_path: Path,
) -> None:
    """Broken: memory of guests with pages of another size would be read wrongly, or be refused."""
    stream, blob, out = (tmp_path / name for name in ("stream", "blob", "out"))
    blob.write_bytes((bytes(range(1, 256)) * 99)[: 2 * page_size + 9])
    loader = f"loader,file={blob},force-raw=on,addr={address + 3 * page_size:#x}"
    guest = start(version, target, tmp_path / "guest", *options, "-device", loader, "-S")
    try:
        guest.migrate(f"exec:cat > {stream}")
        assert guest.ask("query-migrate")["ram"]["page-size"] == page_size
        guest.ask("pmemsave", val=address, size=8 * page_size, filename=f"{tmp_path}/memory")
    finally:
        guest.stop()
    read_file(stream, page_size=page_size)
    size = ("--page-size", str(page_size))
    assert call("verify", str(stream), *size) == f"{stream}: valid\n"
    assert json.loads(call("dump", "--json", str(stream), *size))["page_size"] == page_size
    call("extract", str(stream), "-o", str(out), "--block", block, *size)
    memory = (tmp_path / "memory").read_bytes()
    assert blob.read_bytes() in memory
    assert out.read_bytes()[: 8 * page_size] == memory
    # Without the option, the description at its end tells.
    assert call("verify", str(stream)) == f"{stream}: valid\n"


@pytest.mark.parametrize(
    ("target", "options", "section"),
    [
        ("s390x", ("-machine", "s390-ccw-virtio", "-m", "64"), "s390-storage_attributes"),
        ("ppc64", ("-machine", "pseries", "-m", "256"), "spapr/htab"),
        ("ppc64", ("-machine", "pseries-2.3", "-m", "256"), "spapr/htab"),
    ],
)
def test_sections_of_their_own(
    target: str, options: tuple[str, ...], section: str, tmp_path: Path
) -> None:
    """Broken: a section that PCs do not have would be in the way of all behind it."""
    stream = tmp_path / "stream"
    source = start("7.2", target, tmp_path / "source", *options)
    try:
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    sections = {event.name for event in read_file(stream) if type(event) is events.IterativeSection}
    assert sections == {section}
    assert call("verify", str(stream)).startswith(f"{stream}: valid\n")


def test_storage_attributes(tmp_path: Path) -> None:
    """Broken: attributes would stand elsewhere in a stream than QEMU looks for them. Without KVM,
    on an s390, no guest has any; but QEMU takes those that we write, and refuses other records."""
    options = ("-machine", "s390-ccw-virtio", "-m", "64", "-S")
    stream, changed = tmp_path / "stream", tmp_path / "changed"
    source = start("7.2", "s390x", tmp_path / "source", *options)
    try:
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    more = StorageAttributes(0, AttributeFlag.MORE, 5 * 4096, bytes(range(100)))
    with_values: list[events.Event] = []
    for event in read_file(stream):
        if isinstance(event, StorageAttributes) and event.flag == AttributeFlag.DONE:
            with_values += [more, replace(more, address=1 << 20, values=b"\7" * 5000)]
        with_values.append(event)
    changed.write_bytes(to_bytes(with_values))
    destination = start("7.2", "s390x", tmp_path / "destination", *options, "-incoming", "defer")
    try:
        destination.ask("migrate-incoming", uri=f"exec:cat {changed}")
        destination.wait_for("completed")
    finally:
        destination.stop()
    assert read_file(changed) != read_file(stream)
    call("verify", str(changed), "--against", str(stream))


# Firmware of a pseries guest: makes 100 page table entries, each in a group of its own (H_ENTER).
ENTRIES = bytes.fromhex(
    "38a00000390000647d0903a6"  # li r5, 0; li r8, 100; mtctr r8
    "3860000838800000"  # li r3, 8; li r4, 0   <- next
    "38c0000138e00010"  # li r6, 1; li r7, 0x10
    "4400002238a50008"  # sc 1; addi r5, r5, 8
    "4200ffe848000000"  # bdnz next; b .
)


def _place(machine: BareMachine) -> int:
    """Return where in its firmware the processor is."""
    told = machine.ask("human-monitor-command", **{"command-line": "info registers"})
    return int(told.partition("NIP ")[2].split()[0], 16) & 0xFFF


def test_page_table_entries(tmp_path: Path) -> None:
    """Broken: the page table of a pseries guest would be read wrongly."""
    stream, firmware = tmp_path / "stream", tmp_path / "firmware"
    firmware.write_bytes(bytes(0x100) + ENTRIES)
    machine = ("-machine", "pseries", "-cpu", "power8", "-m", "256", "-bios", str(firmware))
    source = start("7.2", "ppc64", tmp_path / "source", *machine)
    try:
        wait_until(lambda: _place(source) == 0x100 + len(ENTRIES) - 4, lambda: hex(_place(source)))
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    found = read_file(stream)
    chunks = [event for event in found if isinstance(event, HtabChunk) and event.entries]
    assert [chunk.first for chunk in chunks] == list(range(0, 800, 8))
    assert all(int.from_bytes(chunk.entries[:8], "big") & 1 for chunk in chunks)
    shifts = [event.shift for event in found if isinstance(event, HtabHeader)]
    assert shifts == [21, 0, 0]
