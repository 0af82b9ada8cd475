"""Streams of every kind that a real QEMU makes: read, written again, and rebuilt as it does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.block_section import DiskBlock
from vmferry.protocol.dirty_bitmap import BitmapBits, BitmapChunk, BitmapStart
from vmferry.protocol.htab import HtabChunk, HtabHeader
from vmferry.protocol.mapped_pages import list_pieces
from vmferry.protocol.mapped_ram import lay_out
from vmferry.protocol.marks import CommandType
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.return_path import shut
from vmferry.protocol.writer import StreamWriter
from vmferry.tools.diff import compare_blocks
from vmferry.tools.rebuild import RebuiltGuest, rebuild
from vmferry.tools.stream_events import read_events

from tests.qemu.machine import (
    MANY_PAGES,
    BareMachine,
    Machine,
    qemu_command,
    rebuilt_stream,
    stock_ram,
    vmferry,
)

Source = Callable[[Machine, Path], None]


def made(version: str, folder: Path, *options: str, **more: Any) -> Path:
    """The stream of a guest; `send` (Source) migrates it there, if not in the ordinary way."""
    stream, send = folder / "stream", more.pop("send", _send)
    source = Machine(version, folder / "source", *options, **more)
    try:
        source.wait_for_beats()
        send(source, stream)
    finally:
        source.stop()
    return stream


def _send(source: Machine, stream: Path) -> None:
    source.migrate(f"exec:cat > {stream}")


def read(stream: Path) -> list[events.Event]:
    """Its events, which make its bytes again."""
    data, reader = stream.read_bytes(), StreamReader()
    found = reader.feed(data) + reader.close()
    assert b"".join(map(StreamWriter().write, found)) == data
    return found


def check(stream: Path, *options: str) -> None:
    """`verify` accepts it."""
    checked = vmferry("verify", str(stream), *options)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def dumped(stream: Path) -> Any:
    """What `dump` tells."""
    ran = vmferry("dump", "--json", str(stream))
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def send_slowly(source: Machine, uri: str, seconds: float = 1) -> None:
    """So that the guest writes to its memory while it is sent."""
    source.ask("migrate-set-parameters", **{"max-bandwidth": 16 << 20, "downtime-limit": 1})
    source.ask("migrate", uri=uri)
    time.sleep(seconds)
    source.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 34, "downtime-limit": 2000})


def test_compress(tmp_path: Path) -> None:
    """Broken: RAM sent with `compress` would be built otherwise than by QEMU."""

    def send(source: Machine, stream: Path) -> None:
        source.enable("compress", "xbzrle")
        send_slowly(source, f"exec:cat > {stream}")
        source.wait_for("completed")

    stream = made("7.2", tmp_path, send=send, code=MANY_PAGES)
    read(stream)
    assert sum(block["compressed"] for block in dumped(stream)["blocks"]) > 100
    again = rebuilt_stream("7.2", tmp_path, stream, capabilities=("compress",))
    check(stream, *stock_ram(again, tmp_path))


def test_ignore_shared(version: str, tmp_path: Path) -> None:
    """Broken: the list of blocks with addresses would be misread, or shared RAM called wrong."""
    shared = tmp_path / "shared"
    backend = f"memory-backend-file,id=ram0,size=32M,mem-path={shared},share=on"
    options = ("-object", backend, "-machine", "memory-backend=ram0")

    def send(source: Machine, stream: Path) -> None:
        source.enable("x-ignore-shared")
        _send(source, stream)

    stream = made(version, tmp_path, *options, send=send)
    (listed,) = (event for event in read(stream) if isinstance(event, events.RamBlocks))
    addresses = {block.name: block.address for block in listed.blocks}
    assert addresses["ram0"] == 0
    assert addresses["pc.bios"] == 0xFFFC0000
    again = rebuilt_stream(version, tmp_path, stream, *options, capabilities=("x-ignore-shared",))
    ram = stock_ram(again, tmp_path)
    check(stream, *(option for option in ram if not option.startswith("--ram=ram0=")))
    checked = vmferry("verify", str(stream), f"--ram=ram0={shared}")
    assert "it is shared (x-ignore-shared)" in checked.stderr


@pytest.mark.parametrize("zeros", [False, True])
def test_disks(zeros: bool, tmp_path: Path) -> None:
    """Broken: a disk that moved with its guest would be read wrongly, or block the rest."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate((6 << 20) + 3 * 512)
        file.seek(2 << 20)
        file.write(os.urandom(1 << 20))
        file.seek((6 << 20) + 100)
        file.write(b"end")
    drive = ("-drive", f"file={disk},format=raw,if=none,id=disk0")

    def send(source: Machine, stream: Path) -> None:
        source.enable(*(("zero-blocks",) if zeros else ()))
        source.ask("migrate", uri=f"exec:cat > {stream}", blk=True)
        source.wait_for("completed")

    stream = made("7.2", tmp_path, *drive, "-device", "virtio-blk,drive=disk0", send=send)
    found = [event for event in read(stream) if isinstance(event, DiskBlock)]
    blocks = [block for block in found if block.device == "disk0"]
    image = bytearray(7 << 20)
    for block in blocks:
        image[block.sector << 9 : (block.sector << 9) + (1 << 20)] = block.data or bytes(1 << 20)
    assert image[: disk.stat().st_size] == disk.read_bytes()
    assert any(block.data is None for block in blocks) == zeros
    assert dumped(stream)["sections"][0]["name"] == "block"
    check(stream)


def test_dirty_bitmap(version: str, tmp_path: Path) -> None:
    """Broken: a guest with a backup's bitmap could not be read."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(64 << 20))
    blockdev = f"driver=raw,node-name=node0,file.driver=file,file.filename={disk}"

    def send(source: Machine, stream: Path) -> None:
        for name, granularity in (("backup", 65536), ("fine", 512)):
            arguments = {"node": "node0", "name": name, "granularity": granularity}
            added = {"execute": "block-dirty-bitmap-add", "arguments": arguments}
            assert "error" not in source.qmp.cmd_obj(added)
        write = {"command-line": 'qemu-io node0 "write 1M 65k"'}
        source.ask("human-monitor-command", **write)
        source.enable("dirty-bitmaps")
        _send(source, stream)

    stream = made(version, tmp_path, "-blockdev", blockdev, send=send)
    chunks = [event for event in read(stream) if isinstance(event, BitmapChunk)]
    begun = {chunk.bitmap: chunk.body for chunk in chunks if isinstance(chunk.body, BitmapStart)}
    assert begun == {"backup": BitmapStart(65536, 1), "fine": BitmapStart(512, 1)}
    bits = {"backup": 0, "fine": 0}
    for chunk in chunks:
        if isinstance(chunk.body, BitmapBits):
            bits[chunk.bitmap] += int.from_bytes(chunk.body.bits or b"", "little").bit_count()
    assert bits == {"backup": 2, "fine": 130}
    check(stream)


class Sink:
    """Takes a migration into a file, and answers as a destination where all went well."""

    def __init__(self, path: Path, stream: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        self._stream = stream
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        connection, _ = self._server.accept()
        with connection, self._stream.open("wb") as file:
            connection.settimeout(1)
            try:
                while data := connection.recv(1 << 20):
                    file.write(data)
            except TimeoutError:
                # All has come, and the source waits.
                connection.sendall(shut(0))
                connection.settimeout(20)
                while data := connection.recv(1 << 20):
                    file.write(data)

    def close(self) -> None:
        self._thread.join()
        self._server.close()


@pytest.mark.parametrize("switch", [False, True])
def test_postcopy(version: str, switch: bool, tmp_path: Path) -> None:
    """Broken: what one side of a postcopy says could not be read."""

    def send(source: Machine, stream: Path) -> None:
        source.enable("postcopy-ram")
        sink = Sink(tmp_path / "sink", stream)
        if switch:
            limits = {"max-bandwidth": 4 << 20, "downtime-limit": 1}
            source.ask("migrate-set-parameters", **limits)
        source.ask("migrate", uri=f"unix:{tmp_path}/sink")
        if switch:
            time.sleep(0.5)
            source.ask("migrate-start-postcopy")
        source.wait_for("completed")
        sink.close()

    stream = made(version, tmp_path, send=send, code=MANY_PAGES)
    found = read(stream)
    commands = {event.command for event in found if isinstance(event, events.Command)}
    assert CommandType.POSTCOPY_ADVISE in commands
    assert (CommandType.POSTCOPY_RUN in commands) == switch
    assert (CommandType.PACKAGED in commands) == switch
    assert any(isinstance(event, events.Description) for event in found) != switch
    assert len([event for event in found if isinstance(event, events.DeviceSection)]) > 20
    check(stream, *stock_ram(_replayed(version, tmp_path, stream), tmp_path))


def _replayed(version: str, folder: Path, stream: Path) -> Path:
    """As `rebuilt_stream`, for a stream whose destination wants to answer; nobody listens."""
    again, place = folder / "again", folder / "incoming"
    stock = Machine(version, folder / "stock", "-S", "-incoming", "defer")
    try:
        stock.enable("postcopy-ram")
        stock.ask("migrate-incoming", uri=f"unix:{place}")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(place))
            connection.sendall(stream.read_bytes())
            stock.wait_for("completed")
        stock.disable("postcopy-ram")
        stock.migrate(f"exec:cat > {again}")
    finally:
        stock.stop()
    return again


@pytest.mark.parametrize("machine", ["pc-i440fx-2.3", "pc-i440fx-2.2", "pc-i440fx-1.4"])
def test_old_machine_types(machine: str, tmp_path: Path) -> None:
    """Broken: RAM of a guest of an old machine type could not be had."""
    options = ("-machine", machine)
    stream = made("7.2", tmp_path, *options)
    found = read(stream)
    assert any(isinstance(event, events.NoFooters) for event in found)
    assert not any(isinstance(event, events.Configuration) for event in found)
    told = any(isinstance(event, events.Description) for event in found)
    assert told == (machine != "pc-i440fx-2.2")
    assert any(isinstance(event, events.UnsplitDevices) for event in found) != told
    again = rebuilt_stream("7.2", tmp_path, stream, *options)
    with ExitStack() as stack:
        ours, stock = (_rebuilt(path, stack) for path in (stream, again))
        assert ours.images
        assert list(compare_blocks(ours, stock)) == []


def _rebuilt(stream: Path, stack: ExitStack) -> RebuiltGuest:
    with stream.open("rb") as file:
        return rebuild(read_events(file), stack)


@pytest.mark.parametrize("options", [("suppress-vmdesc=on",), ("pc-q35-7.2",)])
def test_other_machines(version: str, options: tuple[str, ...], tmp_path: Path) -> None:
    """Broken: a stream without description, or of another machine, could not be read."""
    stream = made(version, tmp_path, "-machine", *options)
    told = any(isinstance(event, events.Description) for event in read(stream))
    assert told == ("suppress-vmdesc=on" not in options)
    again = rebuilt_stream(version, tmp_path, stream, "-machine", *options)
    check(stream, *stock_ram(again, tmp_path))


@pytest.mark.parametrize("multifd", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_mapped_ram(multifd: bool, live: bool, tmp_path: Path) -> None:
    """Broken: RAM in a mapped-ram file would be built otherwise than by QEMU."""
    qemu_command("10")
    capabilities = ("mapped-ram", "multifd") if multifd else ("mapped-ram",)

    def send(source: Machine, stream: Path) -> None:
        source.enable(*capabilities)
        if not live:
            source.ask("stop")
        send_slowly(source, f"file:{stream}", 0.3)
        source.wait_for("completed")

    stream = made("10", tmp_path, send=send, code=MANY_PAGES)
    incoming = f"file:{stream}"
    again = rebuilt_stream("10", tmp_path, stream, capabilities=capabilities, uri=incoming)
    check(stream, *stock_ram(again, tmp_path))
    data = stream.read_bytes()
    reader = StreamReader()
    found = reader.feed(data) + reader.close()
    (listed,) = (event for event in found if isinstance(event, events.RamBlocks))
    for at, piece in list_pieces(listed):
        assert data[at : at + len(piece)] == piece
    places = dict(zip((at for at, _ in list_pieces(listed)[1:]), listed.blocks, strict=True))
    for (at, block), (_, entry) in zip(places.items(), list_pieces(listed)[1:], strict=True):
        assert block.mapped == lay_out(block.length, 4096, at + len(entry))


@pytest.mark.parametrize(
    ("name", "options", "section"),
    [
        ("x86_64", ("-machine", "microvm", "-m", "64"), None),
        ("aarch64", ("-machine", "virt", "-cpu", "cortex-a57", "-m", "64"), None),
        ("s390x", ("-machine", "s390-ccw-virtio", "-m", "64"), "s390-storage_attributes"),
        ("ppc64", ("-machine", "pseries", "-m", "256"), "spapr/htab"),
        ("ppc64", ("-machine", "pseries-2.3", "-m", "256"), "spapr/htab"),
    ],
)
def test_other_architectures(
    name: str, options: tuple[str, ...], section: str | None, tmp_path: Path
) -> None:
    """Broken: page sizes and sections of other guests would be taken for those of a PC."""
    if shutil.which(f"qemu-system-{name}") is None:
        pytest.skip(f"qemu-system-{name} is not installed")
    stream = tmp_path / "stream"
    source = BareMachine(f"qemu-system-{name}", tmp_path / "source", *options)
    try:
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    sections = {event.name for event in read(stream) if type(event) is events.IterativeSection}
    assert sections == ({section} if section else set())
    assert dumped(stream)["page_size"] == 4096
    check(stream)


# Firmware of a pseries guest: makes 100 page table entries, each in a group of its own (H_ENTER).
ENTRIES = bytes.fromhex(
    "38a00000390000647d0903a6"  # li r5, 0; li r8, 100; mtctr r8
    "3860000838800000"  # li r3, 8; li r4, 0   <- next
    "38c0000138e00010"  # li r6, 1; li r7, 0x10
    "4400002238a50008"  # sc 1; addi r5, r5, 8
    "4200ffe848000000"  # bdnz next; b .
)


def test_page_table_entries(tmp_path: Path) -> None:
    """Broken: the page table of a pseries guest would be read wrongly."""
    if shutil.which("qemu-system-ppc64") is None:
        pytest.skip("qemu-system-ppc64 is not installed")
    stream, firmware = tmp_path / "stream", tmp_path / "firmware"
    firmware.write_bytes(bytes(0x100) + ENTRIES)
    machine = ("-machine", "pseries", "-cpu", "power8", "-m", "256", "-bios", str(firmware))
    source = BareMachine("qemu-system-ppc64", tmp_path / "source", *machine)
    try:
        time.sleep(1)
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    found = read(stream)
    chunks = [event for event in found if isinstance(event, HtabChunk) and event.entries]
    assert [chunk.first for chunk in chunks] == list(range(0, 800, 8))
    assert all(int.from_bytes(chunk.entries[:8], "big") & 1 for chunk in chunks)
    shifts = [event.shift for event in found if isinstance(event, HtabHeader)]
    assert shifts == [21, 0, 0]
