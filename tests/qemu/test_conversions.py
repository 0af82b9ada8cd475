"""Every kind of stream of a real QEMU into every container; a few of them given to a QEMU again."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from vmferry.protocol.formats import libvirt
from vmferry.tools.convert.streams import CONTAINERS, SPARSE_IMAGE

from tests.qemu.machine import (
    MANY_PAGES,
    Machine,
    missing,
    qemu_command,
    rebuilt_stream,
    saved_stream,
    stock_ram,
    vmferry,
)
from tests.qemu.sink import Sink
from tests.qemu.test_every_stream import live
from tests.qemu.test_streams import made
from tests.tools.conversions import MAPPED, XML, check_conversion

FEW = ("plain", "zstd", "libvirt", *MAPPED)
"""Containers that are tried with every stream; others differ in the compressor alone."""


def check_all(
    source: Path | str,
    folder: Path,
    not_mapped: str | None = None,
    containers: Iterable[str] = FEW,
) -> None:
    """Convert into each container; `not_mapped`: the reason why none can be a mapped-ram file."""
    for container in containers:
        told = check_conversion(source, container, folder / "converted")
        if not_mapped is not None and container in MAPPED:
            assert told is not None
            assert not_mapped in told
        else:
            assert told is None, (container, told)


Send = Callable[[Machine, Path], None]


def _slowly(*capabilities: str) -> Send:
    """Migrate with these capabilities, while the guest writes its memory."""

    def send(source: Machine, stream: Path) -> None:
        source.enable(*capabilities)
        live(source, f"exec:cat > {stream}")

    return send


@pytest.mark.parametrize(
    ("version", "capabilities"),
    [("7.2", ["xbzrle"]), ("10", ["xbzrle"]), ("7.2", ["compress"])],
)
def test_live(version: str, capabilities: list[str], tmp_path: Path) -> None:
    """Broken: pages that changed while they were sent would be others in another container."""
    stream = made(version, tmp_path, send=_slowly(*capabilities), code=MANY_PAGES)
    check_all(stream, tmp_path)
    # A QEMU has to be told of XBZRLE as little as of plain pages.
    _qemu_takes_mapped(stream, tmp_path)


def _qemu_takes_mapped(stream: Path, folder: Path) -> None:
    """Check that a QEMU builds the same guest from the stream as a mapped-ram file."""
    out = folder / "mapped"
    ran = vmferry("convert", str(stream), str(out), "--to", "mapped-ram")
    assert ran.returncode == 0, ran.stderr
    again = rebuilt_stream("10", folder, out, capabilities=("mapped-ram",), uri=f"file:{out}")
    checked = vmferry("verify", str(stream), *stock_ram(again, folder))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("capability", ["zero-blocks", "dirty-bitmaps"])
def test_disks(capability: str, tmp_path: Path) -> None:
    """Broken: a disk, or a dirty bitmap, that moves with a guest would be lost on the way."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20) + b"content" * 1000 + bytes((3 << 20) - 7000))
    drive = ("-drive", f"file={disk},format=raw,if=none,id=disk0")

    def send(source: Machine, stream: Path) -> None:
        arguments = {"node": "disk0", "name": "backup", "granularity": 65536}
        added = {"execute": "block-dirty-bitmap-add", "arguments": arguments}
        assert "error" not in source.qmp.cmd_obj(added)
        source.ask("human-monitor-command", **{"command-line": 'qemu-io disk0 "write 1M 65k"'})
        source.enable(capability)
        source.begin_migration(f"exec:cat > {stream}", blk=capability == "zero-blocks")
        source.wait_for("completed")

    stream = made("7.2", tmp_path, *drive, "-device", "virtio-blk,drive=disk0", send=send)
    section = "block" if capability == "zero-blocks" else "dirty-bitmap"
    assert section.encode() in stream.read_bytes()
    check_all(stream, tmp_path)


def test_shared(version: str, tmp_path: Path) -> None:
    """Broken: memory that is elsewhere would become zeros in a mapped-ram file."""
    backend = f"memory-backend-file,id=ram0,size=32M,mem-path={tmp_path}/shared,share=on"
    options = ("-object", backend, "-machine", "memory-backend=ram0")

    def send(source: Machine, stream: Path) -> None:
        source.enable("x-ignore-shared")
        source.migrate(f"exec:cat > {stream}")

    check_all(made(version, tmp_path, *options, send=send), tmp_path, "which RAM is left out")


@pytest.mark.parametrize("switch", [False, True])
def test_postcopy(version: str, switch: bool, tmp_path: Path) -> None:
    """Broken: what a stream says for a postcopy would get in the way of what comes out."""

    def send(source: Machine, stream: Path) -> None:
        source.enable("postcopy-ram")
        sink = Sink(tmp_path / "sink", stream)
        limits = {"max-bandwidth": 4 << 20, "downtime-limit": 1} if switch else {}
        source.ask("migrate-set-parameters", **limits)
        source.ask("migrate", uri=f"unix:{tmp_path}/sink")
        if switch:
            source.wait_for("active")
            source.ask("migrate-start-postcopy")
        source.wait_for("completed")
        sink.close()

    stream = made(version, tmp_path, send=send, code=MANY_PAGES)
    check_all(stream, tmp_path, "a postcopy's stream" if switch else None)
    if not switch:
        _qemu_takes_mapped(stream, tmp_path)


@pytest.mark.parametrize("multifd", [False, True])
def test_mapped_ram(multifd: bool, tmp_path: Path) -> None:
    """Broken: a file that QEMU laid out would not become anything else, or itself."""
    qemu_command("10")

    def send(source: Machine, stream: Path) -> None:
        source.enable("mapped-ram", *(["multifd"] if multifd else []))
        source.migrate(f"file:{stream}")

    stream = made("10", tmp_path, send=send, code=MANY_PAGES)
    check_all(stream, tmp_path)
    _qemu_takes_mapped(stream, tmp_path)


def test_old_machine_type(tmp_path: Path) -> None:
    """Broken: a stream that tells hardly anything could not be put into a container."""
    stream = made("7.2", tmp_path, "-machine", "pc-i440fx-2.3")
    check_all(stream, tmp_path, "needs a configuration")


def test_snapshot(version: str, tmp_path: Path) -> None:
    """Broken: a machine's state in a qcow2 image could not become a stream that QEMU takes."""
    if shutil.which("qemu-img") is None:
        missing("qemu-img")
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", disk, "20M"], check=True)
    options = ("-drive", f"file={disk},format=qcow2,if=ide")
    guest = Machine(version, tmp_path / "guest", *options)
    try:
        guest.wait_for_beats()
        for command in ("eject -f boot", "savevm now"):
            said = guest.ask("human-monitor-command", **{"command-line": command})
            assert not said, said
    finally:
        guest.stop()
    check_all(f"{disk}#now", tmp_path)


def test_packed(version: str, tmp_path: Path) -> None:
    """Broken: what a QEMU left behind through a compressor could not become anything else."""
    stream, packed = saved_stream(version, tmp_path), tmp_path / "packed"
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        packed.write_bytes(pack(stream.read_bytes()))
        check_all(packed, tmp_path)
    check_all(stream, tmp_path, containers=CONTAINERS)


def test_qemu_takes_a_sparse_image(tmp_path: Path) -> None:
    """Broken: QEMU would not find what libvirt tells it to read behind its header."""
    stream, out, xml = saved_stream("10", tmp_path), tmp_path / "out", tmp_path / "xml"
    xml.write_text(XML)
    ran = vmferry("convert", str(stream), str(out), "--to", SPARSE_IMAGE, f"--xml={xml}")
    assert ran.returncode == 0, ran.stderr
    header = libvirt.HEADERS[0].parse(out.read_bytes()[: libvirt.HEADER_SIZE])
    assert libvirt.FORMATS[header.format] == "sparse"
    uri = f"file:{out},offset={libvirt.HEADER_SIZE + header.data_length}"
    again = rebuilt_stream("10", tmp_path, out, capabilities=("mapped-ram",), uri=uri)
    checked = vmferry("verify", str(stream), *stock_ram(again, tmp_path))
    assert checked.returncode == 0, checked.stdout + checked.stderr
