"""`vmferry extract`, on streams whose RAM is known."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError
from vmferry.protocol.formats.memory_image import (
    ELF_HEAD_SIZE,
    LIME_HEADER_SIZE,
    PT_LOAD,
    PT_NOTE,
    ElfHeader,
    LimeHeader,
    Region,
)
from vmferry.tools.compare.verify import verify
from vmferry.tools.extract.guest import ExtractError, Wanted, extract
from vmferry.tools.extract.memory_file import lay_out
from vmferry.tools.extract.memory_output import OutputError
from vmferry.tools.machines.main_ram import Guest, LayoutError, memory_blocks, regions
from vmferry.tools.machines.table import table
from vmferry.tools.rebuild.block_file import PAGES, BlockFile

from tests import streams
from tests.tools.test_cpu_notes import program_headers
from tests.tools.test_damage import Damage

GIB = 1 << 30


def test_raw_image(vmferry: Any) -> None:
    """Broken: the image would differ from the RAM that the stream builds: pages that changed by
    XBZRLE, that became zero again, or are full of another byte."""
    out = vmferry.folder / "ram"
    stream = vmferry.write("stream", streams.WHOLE)
    ran = vmferry.call("extract", stream, "-o", str(out))
    assert ran.exit_code == 0, ran.output
    assert out.read_bytes() == streams.RAM["pc.ram"]
    assert out.stat().st_blocks * 512 < len(streams.RAM["pc.ram"])
    assert out.stat().st_mode & 0o077 == 0


def test_block_by_name(vmferry: Any) -> None:
    """Broken: another block than the one named would come out, or none."""
    out, name = vmferry.folder / "rom", "/rom@etc/acpi"
    ran = vmferry.call("extract", "-", "-o", str(out), "--block", name, feed=streams.WHOLE)
    assert ran.exit_code == 0, ran.output
    assert out.read_bytes() == streams.RAM[name]
    missing = vmferry.run("extract", "-", "-o", "x", "--block", "nix", feed=streams.WHOLE)
    assert "no RAM block 'nix' in the stream; it has pc.ram" in missing.error


def test_everything(vmferry: Any) -> None:
    """Broken: a block or a device would be missing, or leave the folder by its name."""
    out, devices = vmferry.folder / "all", vmferry.folder / "devices"
    arguments = ("-o", str(out), "--all", "--devices", str(devices), "--json")
    ran = vmferry.call("extract", "-", *arguments, feed=streams.WHOLE)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert {b["block"]: Path(b["file"]).read_bytes() for b in found["blocks"]} == streams.RAM
    listed = json.loads((devices / "devices.json").read_text())
    sections = [event for event in streams.EVENTS if isinstance(event, events.DeviceSection)]
    assert found["devices"] == len(sections) == len(listed)
    for entry, section in zip(listed, sections, strict=True):
        assert (devices / entry["file"]).read_bytes() == section.payload
        assert (entry["name"], entry["instance_id"]) == (section.name, section.instance_id)
    assert "exists already" in vmferry.run("extract", "-", *arguments, feed=streams.WHOLE).error


def test_elf_core(vmferry: Any) -> None:
    """Broken: a debugger would find memory at a wrong address, or none."""
    out = vmferry.folder / "core"
    ran = vmferry.call("extract", "-", "-o", str(out), "--format", "elf", feed=streams.WHOLE)
    assert ran.exit_code == 0, ran.output
    data = out.read_bytes()
    header = ElfHeader.parse(data)
    note, load = program_headers(data)
    assert (header.type, header.machine) == (4, 62)
    assert (note.type, load.type) == (PT_NOTE, PT_LOAD)
    assert note.file_size == 0
    assert (load.physical_address, load.memory_size) == (0, len(streams.RAM["pc.ram"]))
    assert data[load.offset :] == streams.RAM["pc.ram"]
    assert load.offset % 4096 == 0
    # With any other `crash` would look for what kdump leaves in a core, and die of it.
    assert (note.alignment, load.alignment) == (0, 0)


def test_lime(vmferry: Any) -> None:
    """Broken: what reads LiME would find memory at a wrong address, or none."""
    out = vmferry.folder / "lime"
    ran = vmferry.call("extract", "-", "-o", str(out), "--format", "lime", feed=streams.WHOLE)
    assert ran.exit_code == 0, ran.output
    data = out.read_bytes()
    header = LimeHeader.parse(data)
    ram = streams.RAM["pc.ram"]
    assert (header.first_address, header.last_address) == (0, len(ram) - 1)
    assert data[LIME_HEADER_SIZE:] == ram


@pytest.mark.parametrize("kind", ["elf", "lime"])
def test_around_the_hole(vmferry: Any, kind: str) -> None:
    """Broken: memory behind the PCI hole would stand at a wrong address."""
    ram = events.RamBlock("pc.ram", 4 * GIB)
    hole, near, far = 2 * GIB // 4096, 0x11, 0x22
    runs = [
        streams.page_run(0, [number, number - 2], fill, blocks=[ram])
        for number, fill in ((hole - 1, near), (hole, far), (hole, 0x33))
    ]
    out = vmferry.folder / "out"
    feed = streams.stream_with(*runs, blocks=[ram])
    ran = vmferry.call("extract", "-", "-o", str(out), "--format", kind, "--json", feed=feed)
    assert f"{4 * GIB // 4096 - 4} of {4 * GIB // 4096} pages never arrived" in ran.stderr
    found = json.loads(ran.stdout)["blocks"][0]["regions"]
    low, high = (
        {"start": 0, "length": 2 * GIB, "address": 0},
        {"start": 2 * GIB, "length": 2 * GIB, "address": 4 * GIB},
    )
    assert found == [low, high]
    with open(out, "rb") as file:
        places = _elf_places(file) if kind == "elf" else _lime_places(file)
        file.seek(places[0] + 2 * GIB - 8192)
        assert file.read(8192) == bytes([0x33]) * 4096 + bytes([0x11]) * 4096
        file.seek(places[4 * GIB])
        assert file.read(8192) == bytes([0x33]) * 4096 + bytes(4096)
    assert out.stat().st_blocks * 512 < 1 << 20


def _elf_places(file: Any) -> dict[int, int]:
    """Return where in the file each segment stands, by its address."""
    headers = program_headers(file.read(4096))
    return {each.physical_address: each.offset for each in headers if each.type == PT_LOAD}


def _lime_places(file: Any) -> dict[int, int]:
    places, at = {}, 0
    while head := file.read(LIME_HEADER_SIZE):
        header = LimeHeader.parse(head)
        places[header.first_address] = at + LIME_HEADER_SIZE
        at += LIME_HEADER_SIZE + header.last_address - header.first_address + 1
        file.seek(at)
    return places


MIB = 1 << 20


@pytest.mark.parametrize(
    ("machine", "mib", "limit", "below"),
    [
        # As `info mtree -f` of QEMU 7.2 shows them.
        ("pc-i440fx-7.2", 3583, None, 3583),
        ("pc-i440fx-7.2", 3584, None, 3072),
        ("pc-i440fx-7.2", 4608, None, 3072),
        ("pc-i440fx-7.2", 4608, 2048, 2048),
        ("pc-i440fx-7.2", 4608, 3840, 3072),
        ("pc-i440fx-1.7", 4608, None, 3584),
        ("pc-q35-7.2", 2815, None, 2815),
        ("pc-q35-7.2", 2816, None, 2048),
        ("pc-q35-7.2", 4608, None, 2048),
        ("pc-q35-7.2", 4608, 1024, 1024),
        ("microvm", 3072, None, 3072),
        ("microvm", 3200, None, 3072),
    ],
)
def test_layouts(machine: str, mib: int, limit: int | None, below: int) -> None:
    """Broken: addresses would differ from those that the machine has."""
    length, split = mib * MIB, below * MIB
    guest = Guest(machine, max_below_4g=None if limit is None else limit * MIB)
    found = regions(guest, [events.RamBlock("pc.ram", length)])
    expected = [Region(0, split, 0), Region(split, length - split, 4 * GIB)]
    assert found == (expected if length > split else expected[:1])


def test_other_layouts() -> None:
    """Broken: an address would be made up where it is not known."""
    memory = [events.RamBlock("mine", 8 * GIB)]
    assert regions(Guest("virt-10.0", "aarch64"), memory) == [Region(0, 8 * GIB, GIB)]
    assert regions(Guest("pseries-7.2"), memory) == [Region(0, 8 * GIB, 0)]
    assert regions(Guest("virt", "riscv32"), memory) == [Region(0, 8 * GIB, 2 * GIB)]
    some = [events.RamBlock("petalogix_ml605.ram", GIB // 4)]
    assert regions(Guest("petalogix-ml605"), some) == [Region(0, GIB // 4, 0x5000_0000)]
    with pytest.raises(LayoutError, match="more memory than 768"):
        regions(Guest("petalogix-ml605"), memory)
    with pytest.raises(LayoutError, match="layout of machine nonsense is not known"):
        regions(Guest("nonsense"), memory)
    with pytest.raises(LayoutError, match="machine without a name is not known: say its --machine"):
        regions(Guest(), memory)
    with pytest.raises(LayoutError, match="1 TiB"):
        regions(Guest("pc-q35-7.2"), [events.RamBlock("mine", 1100 * GIB)])
    assert regions(Guest("nonsense", base=GIB), memory) == [Region(0, 8 * GIB, GIB)]
    with pytest.raises(LayoutError, match="no such address"):
        regions(Guest("nonsense", base=(1 << 64) - GIB), memory)


def test_names_that_only_begin_alike() -> None:
    """Broken: memory of one processor's machine would be at the addresses of another's."""
    memory = [events.RamBlock("mine", GIB)]
    for target, name, address in (
        ("aarch64", "virt-7.2", GIB),
        ("arm", "virt-7.2", GIB),
        ("m68k", "virt-7.2", 0),
        ("riscv64", "virt", 2 * GIB),
        ("or1k", "virt", 0),
    ):
        assert regions(Guest(name, target), memory) == [Region(0, GIB, address)], target
    for name in ("virt-7.2", "virt"):
        with pytest.raises(LayoutError, match=r"several processors.*: say --arch .* or "):
            regions(Guest(name), memory)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("pc-q35-99.0", "pc-q35-10.0"),
        ("pc-i440fx-10.0+pve1", "pc-i440fx-10.0"),
        ("pc-i440fx-jammy", "pc-i440fx-10.0"),
        ("pc-q35-rhel9.4.0", "pc-q35-10.0"),
        ("s390-ccw-virtio-rhel9.4.0", "s390-ccw-virtio-7.2"),
    ],
)
def test_machines_that_nobody_asked(name: str, known: str) -> None:
    """Broken: a machine of another version or vendor would be unknown."""
    assert table().find(name) == table().find(known) != []


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["0000:00:02.0/vga.vram", "pc.ram", "pc.bios"], "pc.ram"),
        (["/rom@etc/acpi/tables", "mem0", "pc.bios", "0000:00:02.0/vga.vram"], "mem0"),
        (["virt.flash0", "virt.flash1", "/objects/main"], "/objects/main"),
    ],
)
def test_main_block(names: list[str], chosen: str) -> None:
    """Broken: firmware or a device's memory would be taken for the guest's."""
    blocks = [events.RamBlock(name, (10 - n) * MIB) for n, name in enumerate(names)]
    assert [block.name for block in memory_blocks(blocks)] == [chosen]


def test_no_main_block() -> None:
    """Broken: a part of memory would be given out for all of it, or for one in another order."""
    nodes = [events.RamBlock("node1", 2 * MIB), events.RamBlock("node0", MIB)]
    with pytest.raises(
        LayoutError, match=r"order is not known.*--block node1 --block node0 \.\.\."
    ):
        memory_blocks(nodes)
    apart = [events.RamBlock("a", MIB, address=0), events.RamBlock("b", MIB, address=2 * MIB)]
    with pytest.raises(LayoutError, match="order is not known"):
        memory_blocks(apart)
    with pytest.raises(LayoutError, match="none of the RAM blocks"):
        memory_blocks([events.RamBlock("pc.bios", MIB)])


@pytest.mark.parametrize(
    ("blocks", "order"),
    [
        ({"ram-node10": None, "mem-dimm0": None, "ram-node2": None}, ["ram-node2", "ram-node10"]),
        ({"/objects/ram-node1": None, "/objects/ram-node0": None}, ["node0", "node1"]),
        # Addresses come before names.
        ({"ram-node0": MIB, "ram-node1": 0}, ["node1", "node0"]),
        ({"b": 2 * MIB, "a": MIB, "c": 0}, ["c", "a", "b"]),
    ],
)
def test_nodes(blocks: dict[str, int | None], order: list[str]) -> None:
    """Broken: memory of NUMA nodes would stand in another order than the guest sees it in."""
    listed = [events.RamBlock(name, MIB, address=at) for name, at in blocks.items()]
    found = [block.name for block in memory_blocks(listed)]
    assert len(found) == len(order)
    assert all(name.endswith(end) for name, end in zip(found, order, strict=True))


def test_devices_memory_has_no_place() -> None:
    """Broken: an address would be made up for memory that the guest sees elsewhere, or nowhere."""
    for address in (None, 0):
        video = events.RamBlock("0000:00:02.0/vga.vram", MIB, address=address)
        with pytest.raises(LayoutError, match="where the guest sees RAM block 0000"):
            regions(Guest("pc-q35-7.2"), [video])
    video = events.RamBlock("0000:00:02.0/vga.vram", MIB, address=0xFD000000)
    assert regions(Guest("pc-q35-7.2"), [video]) == [Region(0, MIB, 0xFD000000)]


@pytest.mark.parametrize("kind", ["raw", "elf", "lime"])
def test_memory_of_several_blocks(kind: str) -> None:
    """Broken: a block's bytes would stand at the addresses of another one, or of the hole."""
    nodes = [events.RamBlock(str(n), size * GIB) for n, size in enumerate((1, 3, 1))]
    found = lay_out(kind, nodes, regions(Guest("pc-q35-7.2"), nodes))
    assert [part.block for part in found.parts] == nodes
    first, second, third = (part.places for part in found.parts)
    if kind == "raw":
        assert (first, second, third) == ([(0, 0)], [(0, GIB)], [(0, 4 * GIB)])
        assert (found.size, found.headers) == (5 * GIB, [])
        return
    head = ELF_HEAD_SIZE if kind == "elf" else LIME_HEADER_SIZE
    behind_hole = head if kind == "elf" else 2 * head
    assert first == [(0, head)]
    assert second == [(0, head + GIB), (GIB, behind_hole + 2 * GIB)]
    assert third == [(0, behind_hole + 4 * GIB)]
    assert found.size == behind_hole + 5 * GIB
    assert [part.regions for part in found.parts] == [
        [Region(0, GIB, 0)],
        [Region(0, GIB, GIB), Region(GIB, 2 * GIB, 4 * GIB)],
        [Region(0, GIB, 6 * GIB)],
    ]


def test_failure_leaves_nothing(vmferry: Any) -> None:
    """Broken: half an image would be taken for a whole one, or an older one be lost."""
    folder = vmferry.folder / "out"
    folder.mkdir()
    (folder / "ram").write_bytes(b"older")
    arguments = ("extract", "-", "-f", "-o", str(folder / "ram"), "--devices", f"{folder}/devices")
    cut = streams.WHOLE[: len(streams.WHOLE) // 2]
    assert "offset" in vmferry.run(*arguments, feed=cut).error
    assert os.listdir(folder) == ["ram"]
    assert (folder / "ram").read_bytes() == b"older"
    assert vmferry.run(*arguments, "--partial", feed=cut).status == 1
    assert sorted(os.listdir(folder)) == ["devices", "ram"]
    assert (folder / "ram").stat().st_size == len(streams.RAM["pc.ram"])


def test_partial_keeps_what_comes_before_the_damage(vmferry: Any) -> None:
    """Broken: damage would cost all that was read in the same piece of the stream before it."""
    at = streams.SMALL.index(b"cpu") - 6
    out = vmferry.folder / "ram"
    damaged = streams.SMALL[:at] + bytes([0xFF]) + streams.SMALL[at + 1 :]
    ran = vmferry.call("extract", "-", "--partial", "-o", str(out), feed=damaged)
    assert ran.exit_code == 1
    assert out.read_bytes() == streams.RAM["pc.ram"]


def test_output_that_cannot_be(vmferry: Any) -> None:
    """Broken: the error would name a file that nobody asked for, or a folder would be replaced."""
    missing = vmferry.folder / "missing" / "ram"
    ran = vmferry.run("extract", "-", "-o", str(missing), feed=streams.WHOLE)
    assert ran.error == f"{missing}: No such file or directory"
    ran = vmferry.run("extract", "-", "-o", str(vmferry.folder), feed=streams.WHOLE)
    assert ran.error == f"{vmferry.folder}: exists, and is no file"


def test_no_ram_is_told(vmferry: Any) -> None:
    """Broken: a stream without RAM would give an empty file."""
    feed = streams.to_bytes([streams.EVENTS[0], events.EndOfStream(0), streams.description([])])
    ran = vmferry.run("extract", "-", "-o", str(vmferry.folder / "x"), feed=feed)
    assert "no RAM" in ran.error


@pytest.mark.parametrize("arguments", [[], ["-o", "x", "--all", "--block", "b"]])
def test_wrong_usage(vmferry: Any, arguments: list[str]) -> None:
    """Broken: what makes no sense would be done somehow."""
    assert vmferry.call("extract", "-", *arguments).exit_code == 2


def test_many_changes_at_once(tmp_path: Path) -> None:
    """Broken: a run of more records than are held at once would lose some, or misplace an error."""
    count, length = 3 * PAGES + 5, 16 * 4096
    block = events.RamBlock("ram", length)
    offsets = np.arange(count, dtype=np.uint64) % np.uint64(16) * np.uint64(4096)
    encodings = np.array([[n % 100, 2, n % 251, n // 251] for n in range(count)], np.uint8)
    starts = np.arange(count) * 4
    run = events.XbzrleRun(
        0, block, 0, offsets, encodings.reshape(-1), starts, np.full(count, 4), True
    )
    expected = bytearray(length)
    for offset, (start, _, *new) in zip(offsets.tolist(), encodings.tolist(), strict=True):
        expected[offset + start : offset + start + 2] = bytes(new)
    path = tmp_path / "ram"
    path.write_bytes(bytes(length))
    fd = os.open(path, os.O_RDWR)
    BlockFile(fd, length, 4096).take(run)
    os.close(fd)
    assert path.read_bytes() == expected


def test_damaged_streams_are_as_verify_has_them(tmp_path: Path) -> None:
    """Broken: damage would end in a traceback, leave files behind, or give other RAM than the
    stream builds."""
    damage = Damage(streams.WHOLE)
    whole = 0
    for number in range(150):
        data = damage.variant(number)
        path = tmp_path / "ram"
        try:
            report = extract(io.BytesIO(data), Wanted(path))
        except (StreamError, ExtractError, LayoutError, OutputError):
            assert os.listdir(tmp_path) == []
            continue
        compared = verify(io.BytesIO(data), {report.blocks[0].block: str(path)})
        assert compared.ram[0].equal
        path.unlink()
        whole += 1
    assert 10 < whole < 140
