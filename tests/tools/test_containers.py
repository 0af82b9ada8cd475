"""Streams in what people keep them in: libvirt save images, compressed files, one in the other."""

from __future__ import annotations

import bz2
import gc
import gzip
import io
import json
import lzma
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard
from lzallright import LZOCompressor
from vmferry.protocol.errors import StreamError
from vmferry.protocol.formats import libvirt
from vmferry.protocol.formats.lzop import Flag, Header
from vmferry.tools.sources.compressed import Frames
from vmferry.tools.sources.containers import unpack

from tests import streams
from tests.tools.running import run_process

XML = "<domain type='qemu'>\n  <name>gäst</name>\n</domain>"
COOKIE = "<qemu-cookie/>"
LITTLE, BIG = libvirt.HEADERS

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def lzop(content: bytes, block: int = 4096) -> bytes:
    """Return an lzop file made by its declaration; blocks that do not shrink are stored."""
    fields = {
        "version": 0x1040,
        "library": 0x20A0,
        "needed": 0x940,
        "method": 1,
        "level": 5,
        "flags": Flag.ADLER32_OF_CONTENT | Flag.CRC32_OF_CONTENT | Flag.ADLER32_OF_DATA,
        "mode": 0,
        "time": 0,
        "name": b"stream",
        "checksum": 0,
    }
    data: bytes = Header.build(fields)
    for start in range(0, len(content), block):
        piece = content[start : start + block]
        packed = LZOCompressor().compress(piece)
        packed = packed if len(packed) < len(piece) else piece
        numbers = [len(piece), len(packed), zlib.adler32(piece), zlib.crc32(piece)]
        numbers += [zlib.adler32(packed)] if len(packed) < len(piece) else []
        data += struct.pack(f">{len(numbers)}I", *numbers) + packed
    return data + bytes(4)


ALONE: dict[str, Callable[[bytes], bytes]] = {**COMPRESS, "lzop": lzop}
"""Compressors of the containers that libvirt has, and lzop."""
EVERY: dict[str, Callable[[bytes], bytes]] = {
    **ALONE,
    "lz4": lz4.frame.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
}
"""Compressors of all containers."""


def save_image(stream: bytes, header: Any = LITTLE, **changes: Any) -> bytes:
    """Return a libvirt save image of a stream, its header changed like this."""
    xml, cookie = XML.encode() + b"\0", COOKIE.encode() + b"\0"
    fields = {
        "magic": libvirt.MAGIC,
        "version": 2,
        "data_length": len(xml) + len(cookie) + 100,
        "was_running": 1,
        "format": 0,
        "cookie_offset": len(xml),
        **changes,
    }
    data: bytes = header.build(fields)
    return data + xml + cookie + bytes(100) + stream


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_files_are_read(vmferry: Any, name: str) -> None:
    """Broken: what `exec:gzip > file` leaves, even in two parts, would not be read."""
    compress = COMPRESS[name]
    data = compress(streams.SMALL[:5000]) + compress(streams.SMALL[5000:])
    for arguments, feed in ((vmferry.write("a", data), None), ("-", data)):
        ran = vmferry.call("dump", "--json", arguments, feed=feed)
        assert ran.exit_code == 0, ran.output
        summary = json.loads(ran.stdout)
        assert summary["container"] == {"layers": [name], "libvirt": None}
        assert summary["size"] == len(streams.SMALL)


@pytest.mark.parametrize("header", [LITTLE, BIG], ids=["little", "big"])
@pytest.mark.parametrize("name", [None, *ALONE])
def test_libvirt_images_are_read(vmferry: Any, name: str | None, header: Any) -> None:
    """Broken: what `virsh save` leaves, on a host of either byte order, would not be read."""
    data = ALONE[name](streams.WHOLE) if name else streams.WHOLE
    number = libvirt.FORMATS.index(name or "raw")
    path = vmferry.write("image", save_image(data, header, format=number))
    found = json.loads(vmferry.call("dump", "--json", path).stdout)["container"]
    assert found["layers"] == ["libvirt save image", *([name] if name else [])]
    expected = {"was_running": True, "format": name or "raw", "finished": True, "damage": []}
    assert found["libvirt"] == expected
    assert vmferry.call("dump", "--xml", path).stdout == XML + "\n"
    shown = json.loads(vmferry.call("dump", "--xml", "--json", path).stdout)
    assert shown == {"xml": XML, "cookie": COOKIE}
    assert vmferry.call("verify", path).exit_code == 0


def test_layers_are_taken_off(vmferry: Any) -> None:
    """Broken: a compressed save image, or a raw one with compressed data, would not be read."""
    nested = gzip.compress(save_image(zstandard.compress(streams.SMALL)))
    ran = vmferry.call("dump", "--json", "-", feed=nested)
    layers = ["gzip", "libvirt save image", "zstd"]
    assert json.loads(ran.stdout)["container"]["layers"] == layers
    deep = streams.SMALL
    for _ in range(5):
        deep = gzip.compress(deep)
    assert "more than 4 layers" in vmferry.run("dump", "-", feed=deep).error


def test_unfinished_image_is_told(vmferry: Any) -> None:
    """Broken: nobody would see that libvirt did not come to the end of its image."""
    path = vmferry.write("image", save_image(streams.SMALL, magic=libvirt.UNFINISHED_MAGIC))
    assert "unfinished" in vmferry.call("dump", path).stdout


def test_no_xml_is_told(vmferry: Any) -> None:
    """Broken: `--xml` of a plain stream would print nothing, or a traceback."""
    assert "not a libvirt" in vmferry.run("dump", "--xml", "-", feed=streams.SMALL).error


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_length": 0xFFFFFFFF}, "offset 0x14: the header says 4294967295 bytes before"),
        ({"data_length": 0}, "offset 0x14: the header says 0 bytes before"),
        ({"data_length": 1 << 23}, "offset 0x14: the header says 8388608 bytes before"),
        ({"data_length": 40}, "offset 0x14: the header says 40 bytes before"),
        ({"cookie_offset": 1 << 20}, "offset 0x20: the cookie lies outside"),
        ({"cookie_offset": 7}, "offset 0x20: the cookie is not at 0x7"),
        ({"version": 3}, "offset 0x10: version 3"),
        ({"version": 0x82}, "offset 0x10: version 130"),
        ({"format": 77}, "offset 0x1c: the libvirt header says format 77, the stream is raw"),
        ({"format": 1}, "offset 0x1c: the libvirt header says gzip, the stream is raw"),
        ({"was_running": 65}, "offset 0x18: was-running is 65"),
        ({"magic": b"LibvirtQemudSawe"}, "offset 0x0: .* magic is damaged"),
    ],
)
@pytest.mark.parametrize("header", [LITTLE, BIG], ids=["little", "big"])
def test_damaged_header_does_not_hide_the_stream(
    vmferry: Any, changes: dict[str, Any], said: str, header: Any
) -> None:
    """Broken: a stream that is sound would be given up for one bit of what stands before it, or
    the XML and cookie with it."""
    path = vmferry.write("image", save_image(streams.WHOLE, header, **changes))
    ran = vmferry.call("verify", path)
    assert (ran.exit_code, ran.stderr.count("\n")) == (0, 1)
    assert re.search(said, ran.stderr), ran.stderr
    shown = json.loads(vmferry.call("dump", "--xml", "--json", path).stdout)
    assert shown == {"xml": XML, "cookie": COOKIE}
    out = vmferry.folder / "plain"
    assert vmferry.call("convert", path, str(out), "--to", "plain").exit_code == 0
    assert out.read_bytes() == streams.WHOLE


@pytest.mark.parametrize("name", ALONE)
def test_compression_shows_what_it_is(vmferry: Any, name: str) -> None:
    """Broken: a wrong number in the header would hide how the stream is compressed, or where."""
    for changes in ({"format": 77}, {"format": 1 + (name == "gzip")}, {"data_length": 3}):
        number = libvirt.FORMATS.index(name)
        image = save_image(ALONE[name](streams.WHOLE), **{"format": number, **changes})
        ran = vmferry.call("verify", vmferry.write("image", image))
        assert (ran.exit_code, ran.stderr.count("\n")) == (0, 1), ran.output
        assert vmferry.call("verify", "-", feed=image).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_length": 0xFFFFFFFF}, "offset 0x14: 4294967295 bytes of XML"),
        ({"data_length": 0}, "offset 0x14: 0 bytes of XML"),
        ({"data_length": 1 << 23}, "ends within its XML"),
        ({"version": 3}, "offset 0x10: this version"),
        ({"format": 77}, "offset 0x1c: format 77"),
        ({"format": 1}, "no gzip data, as the libvirt header says"),
        ({"format": 4}, "no lzop data, as the libvirt header says"),
    ],
)
def test_lying_header_is_refused(changes: dict[str, Any], said: str) -> None:
    """Broken: a wrong length would be believed, and memory taken by it."""
    image = save_image(bytes(4) + streams.SMALL[4:], **changes)
    with pytest.raises(StreamError, match=said):
        unpack(io.BytesIO(image), None)


@pytest.mark.parametrize(("at", "said"), [(46, "a wrong checksum"), (38, "an lzop block of")])
def test_lzop_is_checked(at: int, said: str) -> None:
    """Broken: damaged lzop data would be taken, or memory by the lengths that it says."""
    data = bytearray(lzop(streams.SMALL))
    data[at + len("stream")] ^= 0xFF
    with pytest.raises(StreamError, match=f"offset 0x[0-9a-f]+ .*{said}"):
        unpack(io.BytesIO(data), None).stream.read()


def test_lzop_checksum_of_compressed_data() -> None:
    """Broken: what lzop says of its compressed data would not be looked at."""
    data = bytearray(lzop(bytes(4096)))
    # Behind the sizes, and both checksums of the content.
    data[data.index((4096).to_bytes(4, "big")) + 16] ^= 0xFF
    with pytest.raises(StreamError, match="a wrong checksum in lzop data"):
        unpack(io.BytesIO(data), None).stream.read()


def test_lzop_that_goes_on() -> None:
    """Broken: the error would hold all that a damaged block decompressed to."""
    data = bytearray(lzop(bytes(4096)))
    sizes = data.index((4096).to_bytes(4, "big")) + 4
    packed = int.from_bytes(data[sizes : sizes + 4], "big")
    behind = sizes + 16 + packed
    body = bytes(data[behind - packed : behind]) + b"more"
    data[sizes : sizes + 4] = (packed + 4).to_bytes(4, "big")
    data[behind - packed - 4 : behind] = zlib.adler32(body).to_bytes(4, "big") + body
    with pytest.raises(StreamError, match=r"bad lzop data: EResult.InputNotConsumed$"):
        unpack(io.BytesIO(bytes(data)), None)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"<name>", b"<name>\x1b[2J", "a control character in the XML"),
        (b"<name>", b"<name>\xff", "the XML is not UTF-8"),
        (b"</name>", b"</nime>", "the XML is damaged: mismatched tag"),
        (b"<domain", b"\0domain", "the XML is damaged: no element found"),
        (b"<domain", b"<!DOCTYPE domain><domain", "a document type in the XML"),
    ],
)
def test_damaged_xml_is_refused_alone(vmferry: Any, old: bytes, new: bytes, said: str) -> None:
    """Broken: what is no XML would reach the terminal or another image; or it would hide the
    stream behind it."""
    size = len(XML.encode() + COOKIE.encode()) + len(new) - len(old) + 102
    place = len(XML.encode()) + len(new) - len(old) + 1
    image = save_image(streams.WHOLE, data_length=size, cookie_offset=place).replace(old, new, 1)
    path, out = vmferry.write("image", image), vmferry.folder / "out"
    for arguments in (("dump", path), ("verify", path), ("convert", path, str(out), "--to", "xz")):
        ran = vmferry.call(*arguments)
        assert (ran.exit_code, ran.stderr.count("\n")) == (0, 1), ran.output
        assert re.search(f"offset 0x[0-9a-f]+: {said}", ran.stderr)
    assert said in vmferry.run("dump", "--xml", path).error
    refused = vmferry.run("convert", "-f", path, str(out), "--to", "libvirt").error
    assert said in refused
    assert "--xml FILE" in refused
    xml = vmferry.write("xml", XML.encode())
    converted = vmferry.call("convert", "-f", path, str(out), "--to", "libvirt", "--xml", xml)
    assert converted.exit_code == 0, converted.output


@pytest.mark.parametrize("name", EVERY)
def test_cut_compressed_file_is_refused(name: str) -> None:
    """Broken: half a file would be taken for a whole one."""
    data = EVERY[name](streams.SMALL)
    with pytest.raises(StreamError, match=f"{len(data) // 2:#x} .*within"):
        unpack(io.BytesIO(data[: len(data) // 2]), None).stream.read()


def _offset_of_error(data: bytes) -> int | None:
    """Return the offset at which reading all of it failed, if it did."""
    try:
        stream = unpack(io.BytesIO(data), None).stream
        while stream.read(1 << 16):
            pass
    except StreamError as error:
        return error.offset
    return None


@pytest.mark.parametrize("name", EVERY)
def test_damaged_compressed_files_are_refused_or_read(name: str) -> None:
    """Broken: some damage would end in a traceback, or take memory or time without end."""
    whole = EVERY[name](streams.SMALL)
    chance = random.Random(name)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 3])):
            near = chance.choice([20, len(data)])
            data[chance.randrange(near)] = chance.randrange(256)
        offset = _offset_of_error(bytes(data))
        assert offset is None or 0 <= offset <= len(data)


BOMBS: dict[str, Callable[[], bytes]] = {
    "zstd": lambda: zstandard.ZstdCompressor(1).compress(bytes(1 << 28)),
    "zstd-window": lambda: bytes.fromhex("28b52ffd00b0") + bytes(100),
    "xz": lambda: lzma.compress(bytes(1 << 27), preset=0),
    "xz-dictionary": lambda: lzma.compress(
        bytes(99), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    ),
    "gzip": lambda: gzip.compress(bytes(1 << 27), 1),
    "bzip2": lambda: bz2.compress(bytes(1 << 27)),
    "lz4": lambda: lz4.frame.compress(bytes(1 << 28), block_size=lz4.frame.BLOCKSIZE_MAX4MB),
    "lzma": lambda: lzma.compress(bytes(1 << 27), lzma.FORMAT_ALONE, preset=0),
    "lzma-dictionary": lambda: lzma.compress(
        bytes(99), lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 28}]
    ),
}


@pytest.fixture(scope="module")
def usual_rss(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return how many KiB of memory reading a small stream takes."""
    folder = tmp_path_factory.mktemp("usual")
    return run_process("dump", "-", feed=streams.SMALL, folder=folder).rss


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_stay_small(vmferry: Any, usual_rss: int, name: str) -> None:
    """Broken: a few bytes that decompress to very many would take that much memory."""
    bomb = BOMBS[name]()
    # Behind a header, so that it is read on: a section that never ends.
    head = streams.SMALL[: streams.SMALL.index(b"early")]
    if name in COMPRESS:
        bomb = COMPRESS[name](head) + bomb
    ran = vmferry.run("dump", "-", feed=bomb)
    assert ran.status == 1
    assert "offset 0x" in ran.error
    assert ran.rss < usual_rss + (96 << 10)


@pytest.mark.parametrize("name", ["xz-dictionary", "lzma-dictionary"])
def test_much_memory_is_refused(vmferry: Any, name: str) -> None:
    """Broken: nobody would see why an xz file is not read, nor what to do."""
    error = vmferry.run("dump", vmferry.write("file", BOMBS[name]())).error
    assert "data that need more than 128.0 MiB of memory: decompress them first: xz -dc" in error


def test_nothing_is_left_of_what_is_refused() -> None:
    """Broken: what goes on reading streams would keep the memory of each that is refused."""
    frame_of_empty_blocks = bytes.fromhex("28b52ffd2009") + bytes(3 * 1100)
    with pytest.raises(StreamError, match="empty frames or blocks"):
        unpack(io.BytesIO(frame_of_empty_blocks), None)
    gc.collect()
    assert not [left for left in gc.get_objects() if isinstance(left, Frames)]


def test_header_of_libvirt_itself() -> None:
    """Broken: the declaration would differ from what libvirt 9.0 writes (its own bytes here)."""
    real = bytes.fromhex(
        "4c69627669727451656d756453617665"
        "02000000170701000100000001000000"
        "2b06000000000000000000000000000000000000000000000000000000000000"
        "00000000000000000000000000000000000000000000000000000000"
    )
    assert len(real) == libvirt.HEADER_SIZE
    header = LITTLE.parse(real)
    fields = ("version", "data_length", "was_running", "format", "cookie_offset")
    assert [header[name] for name in fields] == [2, 0x10717, 1, 1, 0x62B]
