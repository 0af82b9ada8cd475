"""Every stream that the library is said to read, made by a real QEMU: one row each in `TABLE`.

Of each row: what `extract` makes of RAM is what a stock QEMU makes of it, byte for byte; what was
read, written again, are the same bytes; every device is taken apart to its last byte.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from vmferry.protocol import events
from vmferry.protocol.devices.fields import Decoder
from vmferry.protocol.pages.mapped_pages import list_pieces
from vmferry.tools.cli import main

from tests import streams
from tests.qemu import evidence
from tests.qemu.evidence import BLOB, LARGE, Shows
from tests.qemu.machine import MANY_PAGES, MANY_PAGES_OF_ARM, MIB, Machine, in_fourth_round
from tests.qemu.sink import Sink, replay

MAIN_RAM = {"pc": "pc.ram", "q35": "pc.ram", "microvm": "microvm.ram", "virt": "mach-virt.ram"}
"""The machines, and what QEMU calls their memory."""
DISK_SIZE = 7 * MIB
"""QEMU 7.2 does not load a disk that ends within a block: it would write past its end."""

Send = Callable[[Machine, str], None]
"""Migrates a guest to a URI, to the end."""


# How it is sent.


def stopped(source: Machine, uri: str) -> None:
    source.ask("stop")
    source.migrate(uri)


def live(source: Machine, uri: str) -> None:
    """Migrate while the guest writes its memory, for three rounds at least."""
    source.migrate_until(uri, in_fourth_round)


def until_xbzrle(source: Machine, uri: str) -> None:
    source.migrate_until(uri, lambda told: told.get("xbzrle-cache", {}).get("pages", 0) > 500)


def until_throttled(source: Machine, uri: str) -> None:
    """Migrate slower than the guest writes, until QEMU has slowed the guest down."""
    source.ask("migrate-set-parameters", **{"cpu-throttle-initial": 50})
    source.migrate_until(uri, lambda told: told.get("cpu-throttle-percentage", 0) >= 50, 4 * MIB)


def with_disks(source: Machine, uri: str) -> None:
    source.ask("migrate", uri=uri, blk=True)
    source.wait_for("completed")


def with_bitmaps(source: Machine, uri: str) -> None:
    for name, granularity in (("backup", 65536), ("fine", 512)):
        arguments = {"node": "node0", "name": name, "granularity": granularity}
        added = source.qmp.cmd_obj({"execute": "block-dirty-bitmap-add", "arguments": arguments})
        assert "error" not in added, added
    write = {"command-line": 'qemu-io node0 "write 1M 65k"'}
    source.ask("human-monitor-command", **write)
    source.migrate(uri)


# What the guest has beside its memory; `source` has content, the destination has room for it.


def disk(folder: Path, *, source: bool) -> tuple[str, ...]:
    path = folder / "disk"
    with path.open("wb") as file:
        file.truncate(DISK_SIZE)
        if source:
            file.seek(2 * MIB)
            file.write(os.urandom(MIB))
            file.seek(DISK_SIZE - 3)
            file.write(b"end")
    drive = f"file={path},format=raw,if=none,id=disk0"
    return ("-drive", drive, "-device", "virtio-blk,drive=disk0")


def node(folder: Path, *, source: bool) -> tuple[str, ...]:  # noqa: ARG001
    path = folder / "disk"
    path.write_bytes(bytes(64 * MIB))
    return ("-blockdev", f"driver=raw,node-name=node0,file.driver=file,file.filename={path}")


def blob(folder: Path, *, source: bool) -> tuple[str, ...]:
    (folder / "blob").write_bytes(BLOB)
    loader = f"loader,file={folder}/blob,force-raw=on,addr={4096 * MIB:#x}"
    return ("-S", "-device", loader) if source else ()


def nothing(folder: Path, *, source: bool) -> tuple[str, ...]:  # noqa: ARG001
    return ()


@dataclass(frozen=True)
class Row:
    """A stream: of which machine, how it is sent, and with which capabilities at either end."""

    machine: str
    send: Send
    shows: Shows
    capabilities: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    versions: tuple[str, ...] = ("7.2", "10")
    devices: Callable[..., tuple[str, ...]] = nothing
    size: int = 32 * MIB


OLD, NEW = ("7.2",), ("10",)
"""COMPRESS and `block` are gone from newer QEMUs; mapped-ram came with 9.0."""
MULTIFD = ("mapped-ram", "multifd")
TABLE = {
    "pc, stopped": Row("pc", stopped, evidence.once),
    "pc, live": Row("pc", live, evidence.again),
    "q35, stopped": Row("q35", stopped, evidence.once),
    "q35, live": Row("q35", live, evidence.again),
    "microvm, stopped": Row("microvm", stopped, evidence.once),
    "microvm, live": Row("microvm", live, evidence.again),
    "arm64 virt, stopped": Row("virt", stopped, evidence.once),
    "arm64 virt, live": Row("virt", live, evidence.again),
    "xbzrle": Row("pc", until_xbzrle, evidence.xbzrle, ("xbzrle",)),
    "xbzrle, arm64 virt": Row("virt", until_xbzrle, evidence.xbzrle, ("xbzrle",)),
    "compress, live": Row("pc", live, evidence.compressed, ("compress",), ("compress",), OLD),
    "compress, stopped": Row(
        "q35", stopped, evidence.compressed, ("compress",), ("compress",), OLD
    ),
    "block": Row("q35", with_disks, evidence.disks, versions=OLD, devices=disk),
    "zero-blocks": Row("q35", with_disks, evidence.zero_blocks, ("zero-blocks",), (), OLD, disk),
    "x-ignore-shared": Row(
        "pc", stopped, evidence.shared, ("x-ignore-shared",), ("x-ignore-shared",)
    ),
    "mapped-ram, stopped": Row("pc", stopped, evidence.mapped, MULTIFD[:1], MULTIFD[:1], NEW),
    "mapped-ram, live": Row("q35", live, evidence.mapped, MULTIFD[:1], MULTIFD[:1], NEW),
    "mapped-ram, multifd, stopped": Row("q35", stopped, evidence.mapped, MULTIFD, MULTIFD, NEW),
    "mapped-ram, multifd, live": Row("pc", live, evidence.mapped, MULTIFD, MULTIFD, NEW),
    "dirty bitmap": Row(
        "pc", with_bitmaps, evidence.bitmaps, ("dirty-bitmaps",), ("dirty-bitmaps",), devices=node
    ),
    "4.5 GiB, pc": Row("pc", stopped, evidence.around_the_hole(3 << 30), devices=blob, size=LARGE),
    "4.5 GiB, q35": Row(
        "q35", stopped, evidence.around_the_hole(2 << 30), devices=blob, size=LARGE
    ),
    "auto-converge": Row("pc", until_throttled, evidence.again, ("auto-converge",)),
    "postcopy, precopy part": Row(
        "pc", live, evidence.postcopy, ("postcopy-ram",), ("postcopy-ram",)
    ),
}
EVERY = [(name, version) for name, row in TABLE.items() for version in row.versions]


@pytest.mark.parametrize(("name", "version"), EVERY)
def test_every_stream(name: str, version: str, tmp_path: Path) -> None:
    """Broken: RAM would be extracted otherwise than QEMU builds it, bytes be lost between reader
    and writer, or devices not be taken apart."""
    row = TABLE[name]
    stream = make(row, version, tmp_path)
    found = read(stream)
    row.shows(found)
    check_devices(found)
    call("dump", str(stream))
    extracted = extract(stream, tmp_path / "extracted")
    check_rebuilt(row, version, stream, extracted, tmp_path)


def make(row: Row, version: str, folder: Path) -> Path:
    """Return the stream of a row."""
    stream = folder / "stream"
    source = _start(row, version, folder / "source", _memory(row, folder, source=True))
    mapped_ram, answered = "mapped-ram" in row.capabilities, "postcopy-ram" in row.capabilities
    try:
        if row.size != LARGE:
            source.wait_for_beats()
        source.enable(*row.capabilities)
        if answered:
            sink = Sink(folder / "sink", stream)
            row.send(source, f"unix:{folder}/sink")
            sink.close()
        else:
            row.send(source, f"file:{stream}" if mapped_ram else f"exec:cat > {stream}")
    finally:
        source.stop()
    return stream


def _start(row: Row, version: str, folder: Path, memory: str, *options: str) -> Machine:
    devices = folder.with_name(f"{folder.name}-devices")
    devices.mkdir()
    name = MAIN_RAM[row.machine]
    return Machine(
        version,
        folder,
        *("-m", str(row.size // MIB)),
        *(("-object", memory, "-machine", f"memory-backend={name}") if memory else ()),
        *row.devices(devices, source=not options),
        *options,
        machine=row.machine,
        code=MANY_PAGES_OF_ARM if row.machine == "virt" else MANY_PAGES,
    )


def _memory(row: Row, folder: Path, *, source: bool) -> str:
    """Return options for memory that can be read from outside the destination.

    Not where it is large: each page that is looked at would be made, which takes half a minute.
    """
    settings = f"id={MAIN_RAM[row.machine]},size={row.size},share=on"
    if "x-ignore-shared" in row.capabilities:
        return f"memory-backend-file,{settings},mem-path={folder}/shared"
    return "" if source or row.size == LARGE else f"memory-backend-memfd,{settings}"


def read(stream: Path) -> list[events.Event]:
    """Return the events of a stream, which make its bytes again; without pages for mapped-ram
    files.
    """
    data = stream.read_bytes()
    found = streams.read(data)
    listed = next(event for event in found if isinstance(event, events.RamBlocks))
    areas = [block.mapped for block in listed.blocks if block.mapped is not None]
    if not areas:
        assert streams.to_bytes(found) == data
        return found
    # The list of blocks stands between bitmaps and pages, which have places of their own.
    beside = [event for event in found if event is not listed]
    pieces = [(event.offset, streams.to_bytes([event])) for event in beside]
    pieces += list_pieces(listed)
    for at, piece in pieces:
        assert data[at : at + len(piece)] == piece
    room = sum(block.length for block in listed.blocks)
    room += sum(area.pages_offset - area.bitmap_offset for area in areas)
    assert sum(len(piece) for _, piece in pieces) + room == len(data)
    return found


def check_devices(found: list[events.Event]) -> None:
    """Check that every byte of each device is part of a field that the description knows."""
    (description,) = [event for event in found if isinstance(event, events.Description)]
    sections = [event for event in found if isinstance(event, events.DeviceSection)]
    decoder = Decoder(description)
    assert len(sections) > 5
    for section in sections:
        fields = decoder.decode(section)
        assert "undescribed" not in [field.type for field in fields]
        assert sum(field.size for field in fields) == len(section.payload)


def call(*arguments: str) -> str:
    """Run `vmferry ARGUMENTS`, which must succeed."""
    ran = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def extract(stream: Path, folder: Path) -> dict[str, Path]:
    """Return what `extract` makes of each RAM block in the stream."""
    told = json.loads(call("extract", str(stream), "-o", str(folder), "--all", "--json"))
    return {block["block"]: Path(block["file"]) for block in told["blocks"]}


def check_rebuilt(
    row: Row, version: str, stream: Path, extracted: dict[str, Path], folder: Path
) -> None:
    """Check that a stock QEMU builds the same guest: memory as seen from outside, the rest as it is
    sent.
    """
    memory, again = _memory(row, folder, source=False), folder / "again"
    stock = _start(row, version, folder / "stock", memory, "-S", "-incoming", "defer")
    try:
        stock.enable(*row.loads)
        if "postcopy-ram" in row.loads:
            replay(stream, stock, folder / "incoming")
        else:
            uri = f"file:{stream}" if "mapped-ram" in row.loads else f"exec:cat {stream}"
            stock.ask("migrate-incoming", uri=uri)
            stock.wait_for("completed")
        main_ram = MAIN_RAM[row.machine]
        assert (main_ram in extracted) == ("x-ignore-shared" not in row.capabilities)
        if memory and main_ram in extracted:
            ours, theirs = extracted.pop(main_ram), stock.shared_memory()
            assert subprocess.run(["cmp", ours, theirs], check=False).returncode == 0
        stock.disable(*row.loads)
        stock.migrate(f"exec:cat > {again}")
    finally:
        stock.stop()
    assert extracted
    call("verify", str(again), *(f"--ram={name}={file}" for name, file in extracted.items()))
    if row.devices is disk:
        images = [folder / side / "disk" for side in ("source-devices", "stock-devices")]
        call("extract", str(stream), "--disks", str(folder / "disks"))
        images += (folder / "disks").glob("*disk0*")
        contents = {image.read_bytes()[:DISK_SIZE] for image in images}
        assert (len(images), len(contents)) == (3, 1)
