"""Test that one line names what is not a stream and says what to do, and that a stream at an offset
is found.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from vmferry.tools.sources.search import MAX_SEARCHED

from tests import streams
from tests.tools.test_behind import COMPRESS
from tests.tools.test_containers import save_image
from tests.tools.test_snapshots import Layout

NOISE = random.Random(8).randbytes(20_000)


def _zip(stream: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("stream", stream)
    return out.getvalue()


def _tar(stream: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("stream")
        info.size = len(stream)
        archive.addfile(info, io.BytesIO(stream))
    return out.getvalue()


KINDS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "multifd": (lambda _: struct.pack(">II", 0x11223344, 1) + NOISE, "a channel of a multifd"),
    "zip": (_zip, "a zip archive; unpack it: unzip -p FILE | vmferry dump -"),
    "tar": (_tar, "a tar archive; unpack it: tar -xOf FILE | vmferry dump -"),
    "lzip": (lambda _: b"LZIP\x01\x0c" + NOISE, "an lzip file; unpack it: lzip -dc"),
    "old lz4": (lambda s: b"\x02\x21\x4c\x18\0\1\0\0" + s, "lz4 file of the old kind"),
    "7z": (lambda _: b"7z\xbc\xaf\x27\x1c\0\4" + NOISE, "7z x -so FILE"),
    "elf": (lambda _: b"\x7fELF\2\1\1" + NOISE, "an ELF file"),
    "kdump": (lambda _: b"KDUMP   " + NOISE, "crash reads it"),
    "flat kdump": (lambda _: b"makedumpfile\0\0\0\0" + NOISE, "makedumpfile -R"),
    "lime": (lambda _: b"EMiL\1\0\0\0" + NOISE, "a LiME memory image"),
    "pcap": (lambda s: struct.pack("<IHH", 0xA1B2C3D4, 2, 4) + bytes(40) + s, "tcpflow -r FILE"),
    "pcapng": (lambda s: b"\x0a\x0d\x0d\x0a\x1c\0\0\0" + s, "tcpflow -r FILE"),
    "tls": (lambda _: b"\x16\x03\x01\x02\0" + NOISE, "TLS records"),
    "xen": (lambda _: b"XenSavedDomain\n " + NOISE, "a save file of Xen"),
    "xl": (lambda _: b"Xen saved domain, xl format\n \0 \r" + NOISE, "a save file of Xen"),
    "vma": (lambda _: b"VMA\0\0\0\0\1" + NOISE, "vma extract FILE FOLDER"),
    "vmdk": (lambda _: b"KDMV\1\0\0\0" + NOISE, "a VMDK disk image"),
    "vdi": (lambda _: bytes(64) + b"\x7f\x10\xda\xbe" + NOISE, "a VDI disk image"),
    "vhdx": (lambda _: b"vhdxfile" + NOISE, "a VHD or VHDX disk image"),
    "luks": (lambda _: b"LUKS\xba\xbe\0\2" + NOISE, "an encrypted disk"),
    "mbr": (lambda _: bytes(510) + b"\x55\xaa" + NOISE, "a raw disk image with a boot sector"),
    "gpt": (lambda _: bytes(510) + b"\x55\xaaEFI PART" + NOISE, "a raw disk image with a GPT"),
    "empty": (lambda _: b"", "the file is empty"),
    "error": (lambda _: b"qemu: Connection refused\n", "but text: qemu: Connection refused"),
    "qmp": (lambda _: b'{"QMP": {"version": {}}}\r\n', "QEMU's monitor socket"),
    "xml": (lambda _: b"<domain type='kvm'>\n</domain>\n", "a domain's XML"),
    "zeros": (lambda _: bytes(10_000), "nothing but zeros at its start, and no stream in"),
    "noise": (lambda _: NOISE, "no QEVM at its start, and no stream in its first 64.0 MiB"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_named_in_one_line(vmferry: Any, kind: str) -> None:
    """Broken: all that can be said of a file would be that it has no QEVM at its start."""
    make, said = KINDS[kind]
    path = vmferry.write("file", make(streams.SMALL))
    errors = []
    for command, *options in (["dump"], ["verify"], ["convert", "-f", f"{path}.out", "--to=plain"]):
        ran = vmferry.call(command, path, *options)
        assert ran.exit_code == 1
        errors.append(ran.stderr)
    assert len(set(errors)) == 1
    assert errors[0].count("\n") == 1
    assert said in errors[0]
    # What is found in there cannot be read at its place.
    assert ("--offset" in errors[0]) == (kind == "tar")


def test_folders_are_named(vmferry: Any) -> None:
    """Broken: a guest at rest, given as a stream, would be told to be a directory, and no more."""
    folder = vmferry.folder / "guest"
    folder.mkdir()
    assert "name the file in it" in vmferry.run("verify", str(folder)).error
    (folder / "guest.json").write_text("{}")
    assert f"--guest dir:{folder}" in vmferry.run("verify", str(folder)).error


def test_qcow2_features_are_named(vmferry: Any) -> None:
    """Broken: of a qcow2 image that is not read, nobody would know why, nor what to do."""
    names = b"\0\x20shiny thing".ljust(48, b"\0")
    extensions = struct.pack(">II", 0x6803F857, len(names)) + names
    extensions += struct.pack(">II", 0x44415441, 8) + b"data.raw" + bytes(8)

    def image(**header: int) -> str:
        data = bytearray(Layout(bytes(4096), header=header).build())
        data[100:104] = struct.pack(">I", 104)
        data[104 : 104 + len(extensions)] = extensions
        path: str = vmferry.write("image", bytes(data))
        return path

    error = vmferry.run("dump", image(version=3, incompatible_features=4)).error
    assert "an external data file (data.raw)" in error
    error = vmferry.run("dump", image(version=3, incompatible_features=1 << 32 | 1 << 40)).error
    assert "features that are not read (shiny thing, bit 40)" in error
    assert "-loadvm" in error
    assert "encrypted with LUKS" in vmferry.run("dump", image(crypt_method=2)).error


@pytest.mark.parametrize("offset", [1, 512, 4096, 77_777, (4 << 20) - 3, 4 << 20, 9_000_001])
@pytest.mark.parametrize("kind", ["plain", "libvirt", *sorted(set(COMPRESS) - {"lzma"})])
def test_stream_at_an_offset(vmferry: Any, kind: str, offset: int) -> None:
    """Broken: a stream inside another file would not be found, or not at its place."""
    data = streams.WHOLE
    if kind != "plain":
        data = save_image(data) if kind == "libvirt" else COMPRESS[kind](data)
    before = (NOISE * (offset // len(NOISE) + 1))[:offset]
    # What looks like a stream, but is none.
    for place in range(5000, offset - 5000, 20_000):
        lie = b"QEVM\0\0\0\3\x66\x1f\x8b\x08LibvirtQemudSave"
        before = before[:place] + lie + before[place + len(lie) :]
    path = vmferry.write("file", before + data)
    error = vmferry.call("verify", path).stderr
    assert f"begins at offset {offset}: --offset {offset}" in error
    assert vmferry.call("verify", path, "--offset", hex(offset)).exit_code == 0


def test_offset_of_every_command(vmferry: Any) -> None:
    """Broken: one of the commands would read from the file's start, or count places from there."""
    plain = vmferry.write("plain", streams.WHOLE)
    path = vmferry.write("file", NOISE[:5000] + streams.WHOLE + NOISE)
    behind = {"bytes": len(NOISE), "exact": True, "layer": None, "warning": None}
    same = json.loads(vmferry.call("dump", "--json", plain).stdout)
    found = json.loads(vmferry.call("dump", "--json", path, "--offset", "5000").stdout)
    assert found == {**same, "behind": behind}
    out = vmferry.folder / "out"
    for container in ("plain", "mapped-ram"):
        ran = vmferry.call("convert", "-f", path, str(out), "--to", container, "--offset", "5000")
        assert ran.exit_code == 0
    mapped = vmferry.write("mapped", NOISE[:4096] + out.read_bytes())
    assert vmferry.call("verify", mapped, "--offset", "4K").exit_code == 0
    ran = vmferry.call("diff", "--json", path, plain, "--offset", "5000")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["behind"] == [behind, None]
    assert vmferry.call("diff", plain, path, "--other-offset", "0x1388").exit_code == 0
    other = ("--against", path, "--other-offset", "5000")
    assert vmferry.call("verify", plain, *other).exit_code == 0
    images = [vmferry.folder / name for name in ("a", "b")]
    for image, arguments in zip(images, ((plain,), (path, "--offset", "5000")), strict=True):
        assert vmferry.call("extract", "-f", *arguments, "-o", str(image)).exit_code == 0
    assert images[0].read_bytes() == images[1].read_bytes()
    ran = vmferry.call("verify", "-", "--offset", "5000", feed=NOISE[:5000] + streams.WHOLE)
    assert ran.exit_code == 0


def test_bad_offsets(vmferry: Any) -> None:
    """Broken: a place behind the end, or a wrong number, would end in a traceback."""
    path = vmferry.write("stream", streams.WHOLE)
    assert "so no offset 1099511627776" in vmferry.run("verify", path, "--offset", "1T").error
    assert "so no offset" in vmferry.run("verify", "-", "--offset", "1T", feed=b"abc").error
    for text in ("0xyz", "-1", "1x", "0x" + "f" * 17):
        assert vmferry.call("verify", path, "--offset", text).exit_code == 2
        assert vmferry.call("diff", path, path, "--other-offset", text).exit_code == 2
    for option in ("--other-offset", "--other-length"):
        ran = vmferry.call("verify", path, option, "1")
        assert (ran.exit_code, f"{option} is for --against" in ran.stderr) == (2, True)
    image = vmferry.write("image", bytes(512) + Layout(streams.WHOLE).build())
    assert "a file of its own" in vmferry.run("dump", image, "--offset", "512").error


def test_search_is_bounded(vmferry: Any) -> None:
    """Broken: a large file would be searched for hours, or fill the memory."""
    path = Path(vmferry.folder / "large")
    with path.open("wb") as file:
        file.seek(MAX_SEARCHED + (1 << 20))
        file.write(streams.WHOLE)
        file.truncate(1 << 40)
    ran = vmferry.run("verify", str(path))
    assert "no stream in its first 64.0 MiB" in ran.error
    assert ran.rss < 200 << 10


def test_crlf_is_named(vmferry: Any) -> None:
    """Broken: nobody would see that a stream was copied as text."""
    damaged = streams.WHOLE.replace(b"\n", b"\r\n")
    error = vmferry.run("verify", vmferry.write("stream", damaged)).error
    assert "carriage returns precede all its line feeds" in error
    ran = vmferry.call("verify", "--json", vmferry.write("stream", damaged))
    assert "carriage returns" in json.loads(ran.stdout)["error"]["message"]
    for place in (5000, len(streams.WHOLE) // 2):
        other = bytearray(streams.WHOLE)
        other[place : place + 4000] = NOISE[:4000]
        ran = vmferry.call("verify", vmferry.write("stream", bytes(other)))
        assert "carriage" not in ran.output


def test_holes_are_named(vmferry: Any) -> None:
    """Broken: nobody would see that a part of a file was lost, nor which one."""
    whole = streams.WHOLE
    start, end = 0x2000, 0x4000
    hole = whole[:start] + bytes(end - start) + whole[end:]
    for path in (vmferry.write("hole", hole), vmferry.write("moved", NOISE[:512] + hole)):
        offset = "512" if path.endswith("moved") else "0"
        error = vmferry.run("verify", path, "--offset", offset).error
        found = error[error.index("a hole of zeros from ") :].split()
        assert int(found[5], 16) <= start + 512
        assert end - 512 <= int(found[7].rstrip(":"), 16) <= end + 512
    cut = vmferry.write("cut", whole[:start] + bytes(1 << 20))
    assert f"from {start:#x} to its end the file has zeros only" in vmferry.run("verify", cut).error


def test_no_page_size_hint_where_it_is_known(vmferry: Any) -> None:
    """Broken: after hundreds of good pages, the page size would be suspected."""
    # A machine without configuration has no early devices either.
    first = [*streams.opening()[:1], *streams.ram_start()]
    many = streams.to_bytes([*first, *streams.ram_part(streams.page_run(0, range(200)))[:2]])
    few = streams.to_bytes([*first, *streams.ram_part(streams.page_run(0, range(3)))[:2]])
    for data, said in ((many, False), (few, True)):
        path = vmferry.write("stream", data + b"\xff" * 3000)
        error = vmferry.run("verify", path).error
        assert "is no record" in error
        assert ("if pages have 4096 bytes" in error) == said


def test_nothing_more_is_loaded() -> None:
    """Broken: each start of `vmferry dump` would load what only errors, or some files need."""
    code = (
        "import sys, vmferry.tools.commands.dump, vmferry.tools.dump.whole\n"
        "import vmferry.tools.commands.verify\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('lz4', 'psutil')"
        " or name.endswith(('sources.recognised', 'sources.search', 'guest.base'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_stream_packed_twice_is_found(vmferry: Any) -> None:
    """Broken: an archive in compressed data would not be named, or a place that is of no use."""
    for data in (gzip.compress(_tar(streams.WHOLE)), zstandard.compress(_tar(streams.WHOLE))):
        error = vmferry.run("verify", vmferry.write("archive", data)).error
        assert "a tar archive" in error
        assert "begins at offset 512 of the" in error
        assert "--offset" not in error
