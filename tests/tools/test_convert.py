"""`vmferry convert`: between containers, without a change to the stream."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from vmferry.guest.sizes import format_size
from vmferry.protocol import events
from vmferry.protocol.formats import libvirt
from vmferry.tools.convert.streams import CONTAINERS, convert
from vmferry.tools.sources.containers import Opened, unpack
from vmferry.tools.sources.stream_events import read_events

from tests import streams
from tests.protocol.kinds import KINDS, mapped
from tests.tools.conversions import MAPPED, XML, check_conversion


def _unpacked(data: bytes) -> Opened:
    return unpack(io.BytesIO(data), None)


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name not in MAPPED])
def test_comes_back(vmferry: Any, container: str) -> None:
    """Broken: a stream would differ, or not be found, behind a container that we made."""
    stream = vmferry.write("stream", streams.WHOLE)
    xml = ("--xml", vmferry.write("xml", XML.encode())) if "libvirt" in container else ()
    out, back = vmferry.folder / "out", vmferry.folder / "back"
    ran = vmferry.call("convert", stream, str(out), "--to", container, *xml)
    assert ran.exit_code == 0, ran.output
    ran = vmferry.call("convert", str(out), str(back), "--to", "plain")
    assert ran.exit_code == 0, ran.output
    assert back.read_bytes() == streams.WHOLE
    assert _unpacked(out.read_bytes()).stream.read() == streams.WHOLE


def test_sizes_are_reported(vmferry: Any) -> None:
    """Broken: nobody would learn what a compression was worth, or -q would not silence it."""
    stream, out = vmferry.write("stream", streams.WHOLE), vmferry.folder / "out"
    ran = vmferry.call("convert", stream, str(out), "--to", "xz")
    written, whole = out.stat().st_size, len(streams.WHOLE)
    sizes = f"{format_size(written)} for {format_size(whole)} of stream, {written / whole:.1%}"
    assert ran.output == f"{out}: {sizes}\n"
    ran = vmferry.call("convert", stream, str(out), "--to", "plain", "-f")
    assert ran.output == f"{out}: {format_size(whole)}\n"
    assert vmferry.call("convert", stream, str(out), "--to", "plain", "-f", "-q").output == ""


def test_terminal(vmferry: Any) -> None:
    """Broken: binary data would make the user's terminal unusable, or minutes pass in silence."""
    master, terminal = os.openpty()
    stream = vmferry.write("stream", streams.WHOLE)
    command = [sys.executable, "-m", "vmferry.tools", "convert", stream]
    plain = [*command, "-", "--to", "plain"]
    ran = subprocess.run(plain, check=False, stdout=terminal, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 2
    assert "a stream is no text for a terminal: name a file, or pipe it on" in ran.stderr
    subprocess.run(
        [*command, str(vmferry.folder / "out"), "--to", "xz"], check=True, stderr=terminal
    )
    os.close(terminal)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "converting" in shown
    assert "/s" in shown


def test_what_libvirt_said_is_kept(vmferry: Any) -> None:
    """Broken: the XML, the cookie, or whether the guest ran, would be lost on the way."""
    header = {
        "magic": libvirt.MAGIC,
        "version": 2,
        "data_length": 400,
        "was_running": 0,
        "format": 0,
        "cookie_offset": 300,
    }
    # On a host of the other byte order.
    data = (
        libvirt.HEADERS[1].build(header)
        + XML.encode().ljust(300, b"\0")
        + b"<c/>".ljust(100, b"\0")
    )
    path = vmferry.write("image", data + streams.WHOLE)
    for container in ("libvirt:zstd", "libvirt"):
        out = vmferry.folder / container
        ran = vmferry.call("convert", path, str(out), "--to", container)
        assert ran.exit_code == 0, ran.output
        image = _unpacked(out.read_bytes()).image
        assert image is not None
        assert (image.xml, image.cookie, image.was_running) == (XML, "<c/>", False)
        path = str(out)
    other, out = XML.replace("guest", "other"), vmferry.folder / "out"
    ran = vmferry.call(
        "convert", path, str(out), "--to", "libvirt", "--xml", vmferry.write("xml", other.encode())
    )
    assert ran.exit_code == 0, ran.output
    image = _unpacked(out.read_bytes()).image
    assert image is not None
    assert (image.xml, image.cookie) == (other, "<c/>")


@pytest.mark.parametrize("command", ["zstd", "gzip"])
def test_other_programs_read_it(vmferry: Any, command: str) -> None:
    """Broken: `zstd -dc` or `gzip -dc`, by which QEMU takes it, would refuse what we compressed."""
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")
    big = streams.to_bytes(
        [
            *streams.opening(),
            *streams.zeros(),
            *(e for _ in range(5) for e in streams.ram_part(streams.page_run(0, range(256)))),
            *streams.closing(),
        ]
    )
    out = vmferry.folder / "out"
    ran = vmferry.call("convert", "-", str(out), "--to", command, feed=big)
    assert ran.exit_code == 0, ran.output
    with open(out, "rb") as file:
        unpacked = subprocess.run([command, "-dc"], stdin=file, capture_output=True, check=True)
    assert unpacked.stdout == big


def test_to_standard_output(vmferry: Any) -> None:
    """Broken: `-incoming exec:vmferry convert ... -` would not work, or what is behind a stream
    would come along."""
    feed = gzip.compress(streams.WHOLE + b"behind it")
    ran = vmferry.run("convert", "-", "-", "--to", "plain", feed=feed)
    assert ran.status == 0
    assert (vmferry.folder / "standard" / "out").read_bytes() == streams.WHOLE


def test_damaged_stream_is_not_converted(vmferry: Any) -> None:
    """Broken: a file would be there that no QEMU takes."""
    out = vmferry.folder / "folder"
    out.mkdir()
    cut = streams.WHOLE[: len(streams.WHOLE) // 2]
    assert (
        "ends early" in vmferry.run("convert", "-", str(out / "x"), "--to", "zstd", feed=cut).error
    )
    assert os.listdir(out) == []


def test_libvirt_needs_xml(vmferry: Any) -> None:
    """Broken: an image would come out that libvirt refuses."""
    out = str(vmferry.folder / "x")
    ran = vmferry.run("convert", "-", out, "--to", "libvirt", feed=streams.WHOLE)
    assert "--xml" in ran.error
    bad = vmferry.write("xml", b"nothing of the kind")
    ran = vmferry.run("convert", "-", out, "--to", "libvirt", "--xml", bad, feed=streams.WHOLE)
    assert "not the XML" in ran.error
    ran = vmferry.call("convert", "-", out, "--to", "zstd", "--xml", bad, feed=streams.WHOLE)
    assert ran.exit_code == 2


def test_small_pieces(tmp_path: Any) -> None:
    """Broken: a stream that comes in small pieces would lose bytes between them."""

    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self._left = memoryview(streams.WHOLE)

        def readinto(self, target: Any, /) -> int:
            count = min(len(target), len(self._left), 777)
            target[:count] = self._left[:count]
            self._left = self._left[count:]
            return count

    out = tmp_path / "out"
    assert convert(Opened(Slow()), out, "plain").size == len(streams.WHOLE)  # type: ignore[arg-type]
    assert out.read_bytes() == streams.WHOLE


def test_to_mapped_ram_and_back(vmferry: Any) -> None:
    """Broken: RAM or devices would be others in a mapped-ram file, or not come back from one."""
    stream, there, back = vmferry.write("a", streams.WHOLE), *(vmferry.folder / n for n in "bc")
    assert vmferry.call("convert", stream, str(there), "--to", "mapped-ram").exit_code == 0
    assert vmferry.call("convert", str(there), str(back), "--to", "plain").exit_code == 0
    pairs = [
        f"--ram={block}={vmferry.write(str(number), bytes(image))}"
        for number, (block, image) in enumerate(streams.RAM.items())
    ]
    for path in (there, back):
        result = vmferry.call("verify", str(path), *pairs)
        assert (result.exit_code, result.stdout) == (0, f"{path}: valid; RAM is equal\n")
    result = vmferry.call("diff", stream, str(back))
    assert (result.exit_code, result.stdout) == (0, "equal: RAM and devices\n")
    found = json.loads(vmferry.call("dump", "--json", str(there)).stdout)
    assert found["capabilities"] == ["events", "mapped-ram"]
    # Zero pages take no room.
    assert [(block["plain"], block["zero"]) for block in found["blocks"]] == [(35, 221), (2, 6)]
    for block in read_blocks(there):
        assert block.mapped is not None
        assert block.mapped.pages_offset % (1 << 20) == 0


def read_blocks(path: Path) -> tuple[events.RamBlock, ...]:
    """Return the RAM blocks of a stream."""
    with path.open("rb") as file:
        found = read_events(cast(BinaryIO, file))
        return next(event.blocks for event in found if isinstance(event, events.RamBlocks))


def test_a_described_configuration(vmferry: Any) -> None:
    """Broken: a converted stream's configuration would not be as its description says."""
    configuration = {"vmsd_name": "configuration", "version": 1, "fields": []}
    entries = [{"name": "len", "type": "uint32", "size": 4}]
    entries.append({"name": "name", "type": "buffer", "size": 2})
    value = {"configuration": {**configuration, "fields": entries}, "devices": []}
    block = events.RamBlock("ram", 8192)
    made: list[events.Event] = [
        *(events.Header(0), events.Configuration(0, "pc")),
        *(*streams.ram_start([block]), *streams.zeros([block])),
        *(*streams.closing([])[:-1], streams.description_of(value)),
    ]
    stream = vmferry.write("a", streams.to_bytes(made))
    there, back = (vmferry.folder / name for name in "bc")
    assert vmferry.call("convert", stream, str(there), "--to", "mapped-ram").exit_code == 0
    assert vmferry.call("verify", str(there)).exit_code == 0
    assert vmferry.call("convert", str(there), str(back), "--to", "plain").exit_code == 0
    assert vmferry.call("verify", str(back)).exit_code == 0
    result = vmferry.call("dump", "--devices", "configuration", str(there))
    assert "mapped-ram" in result.stdout


STREAMS = {kind: streams.to_bytes(made) for kind, made in KINDS.items()}
STREAMS["mapped-ram"] = mapped({"ram": [1, 5], "rom": []})[0]
STREAMS["mapped-ram, shared"] = mapped({"rom": [7]}, shared="ram")[0]
STREAMS["large pages"] = mapped({"ram": [1, 5]}, page_size=65536)[0]
NOT_MAPPED = {
    "postcopy": "a postcopy's stream does not fit",
    "shared": "only a mapped-ram file says which RAM is left out",
    "no-footers": "needs a configuration",
    "nothing-told": "needs a configuration",
}
"""Streams that no mapped-ram file can hold."""


@pytest.mark.parametrize("kind", STREAMS)
def test_every_kind_into_every_container(kind: str, tmp_path: Path) -> None:
    """Broken: something of a stream would be lost, or changed, in another container; or a file be
    made that QEMU misreads."""
    source = tmp_path / "stream"
    source.write_bytes(STREAMS[kind])
    for container in CONTAINERS:
        told = check_conversion(source, container, tmp_path / "out")
        if container in MAPPED and kind in NOT_MAPPED:
            assert told is not None
            assert NOT_MAPPED[kind] in told
        else:
            assert told is None, (container, told)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_from_every_container(pack: Any, tmp_path: Path) -> None:
    """Broken: what was compressed, or stood in a libvirt image, could not become anything else."""
    source, first = tmp_path / "stream", tmp_path / "first"
    source.write_bytes(pack(streams.WHOLE))
    for one in ("plain", "libvirt:zstd", "libvirt:sparse"):
        assert check_conversion(source, one, first) is None
        for container in CONTAINERS:
            assert check_conversion(first, container, tmp_path / "out") is None, (one, container)


def test_a_mapped_ram_file_needs_a_file(vmferry: Any) -> None:
    """Broken: what is read or written at any place would be garbled in a pipe."""
    path = vmferry.write("stream", mapped({"ram": [1]})[0])
    assert "needs a file" in vmferry.run("convert", path, "-", "--to", "mapped-ram").error
