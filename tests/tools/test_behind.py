"""A stream ends where it ends: what stands behind it is counted and mentioned, and not copied."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard
from vmferry.tools.sources import compressed
from vmferry.tools.sources.stream_events import PIECE
from vmferry.transport.shared import wait_readable

from tests import streams
from tests.tools.test_containers import lzop, save_image
from tests.tools.test_snapshots import Layout

OLD = random.Random(5).randbytes(70_000)
"""Old data of a volume, which looks like nothing."""


def _lzma(content: bytes) -> bytes:
    return lzma.compress(content, lzma.FORMAT_ALONE)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
    "lz4": lz4.frame.compress,
    "lzop": lzop,
    "lzma": _lzma,
}
TAILS = {
    "zeros": bytes(70_000),
    "garbage": OLD,
    "one byte": b"x",
    "three bytes": b"\x28\xb5\x2f",
    "zeros and garbage": bytes(300_000) + OLD,
}


def _checked(vmferry: Any, path: str, same: bytes) -> list[Any]:
    """Return the line in which every command reports what follows the stream; `convert` must copy
    none of it.
    """
    found = []
    for command in ("dump", "verify"):
        ran = vmferry.call(command, "--json", path)
        assert ran.exit_code == 0, ran.output
        found.append(json.loads(ran.stdout)["behind"])
    ran = vmferry.call("extract", "-f", "--json", path, "-o", str(vmferry.folder / "ram"))
    found.append(json.loads(ran.stdout)["behind"])
    ran = vmferry.call("diff", "--json", path, path)
    found += json.loads(ran.stdout)["behind"]
    for container in ("plain", "mapped-ram"):
        out = vmferry.folder / "out"
        ran = vmferry.call("convert", "-f", path, str(out), "--to", container)
        assert ran.exit_code == 0, ran.output
        assert ("were not looked at, and not copied" in ran.stderr) == (found[0] is not None)
        assert container != "plain" or out.read_bytes() == same
    return found


@pytest.mark.parametrize("pad", [bytes(5000), OLD, b"QEVM" + OLD], ids=["zeros", "old", "QEVM"])
def test_plain_stream_in_a_volume(vmferry: Any, pad: bytes) -> None:
    """Broken: a volume that is larger than its stream would be refused, or copied with it."""
    path = vmferry.write("volume", streams.WHOLE + pad)
    said = {"bytes": len(pad), "exact": True, "layer": None, "warning": None}
    assert _checked(vmferry, path, streams.WHOLE) == [said] * 5
    line = f"{len(pad)} bytes behind the end of the stream were not looked at"
    for command in (("dump",), ("verify",), ("extract", "-f", "-o", str(vmferry.folder / "ram"))):
        assert line in vmferry.call(*command, path).stdout


def test_nothing_behind_is_not_mentioned(vmferry: Any) -> None:
    """Broken: every stream would be said to have something behind it."""
    for data in (streams.WHOLE, *(compress(streams.WHOLE) for compress in COMPRESS.values())):
        path = vmferry.write("stream", data)
        assert _checked(vmferry, path, streams.WHOLE) == [None] * 5
        assert "not looked at" not in vmferry.call("verify", path).output


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_stream_in_a_volume(vmferry: Any, name: str, tail: str) -> None:
    """Broken: `exec:zstd > /dev/vg/lv` could not be read, though the stream was complete."""
    path = vmferry.write("volume", COMPRESS[name](streams.WHOLE) + TAILS[tail])
    ran = vmferry.call("verify", "--json", path)
    assert ran.exit_code == 0, ran.output
    said = {"bytes": len(TAILS[tail]), "exact": True, "layer": name, "warning": None}
    assert json.loads(ran.stdout)["behind"] == said


@pytest.mark.parametrize("name", COMPRESS)
def test_padding_that_was_compressed_too(vmferry: Any, name: str) -> None:
    """Broken: a whole volume that was compressed would have its padding copied, or not counted."""
    path = vmferry.write("volume", COMPRESS[name](streams.WHOLE + bytes(1 << 20)))
    said = {"bytes": 1 << 20, "exact": True, "layer": None, "warning": None}
    assert _checked(vmferry, path, streams.WHOLE) == [said] * 5


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd", "lz4"])
def test_old_frames_behind(vmferry: Any, name: str) -> None:
    """Broken: what is left of an older file behind this one would make this one unreadable."""
    one, other = COMPRESS[name](streams.WHOLE), COMPRESS[name](streams.SMALL)
    path = vmferry.write("both", one + other)
    said = {"bytes": len(streams.SMALL), "exact": True, "layer": None, "warning": None}
    assert _checked(vmferry, path, streams.WHOLE)[0] == said
    damaged = bytearray(other)
    damaged[len(other) // 2 :] = OLD
    for rest in (other[: len(other) // 2], bytes(damaged)):
        path = vmferry.write("part", one + rest)
        ran = vmferry.call("verify", "--json", path)
        assert ran.exit_code == 0, ran.output
        assert json.loads(ran.stdout)["behind"]["bytes"] == len(rest)


@pytest.mark.parametrize("name", ["gzip", "xz", "zstd", "lz4"])
def test_checksum_behind_the_stream(vmferry: Any, name: str) -> None:
    """Broken: damage that only the checksum at the end shows would be taken for a sound stream."""
    compress = COMPRESS[name]
    if name == "zstd":
        compress = zstandard.ZstdCompressor(write_checksum=True).compress
    if name == "lz4":

        def compress(content: bytes) -> bytes:
            whole: bytes = lz4.frame.compress(content, content_checksum=True)
            return whole

    data = bytearray(compress(streams.WHOLE + bytes(8 << 20)))
    place = {"gzip": -6, "xz": -32, "zstd": -2, "lz4": -2}[name]
    data[place] ^= 0x10
    error = vmferry.run("verify", vmferry.write("damaged", bytes(data) + OLD)).error
    assert "of the compressed stream: bad" in error


def test_containers_in_volumes(vmferry: Any) -> None:
    """Broken: a save image on a block device, or in another layer, would not be read."""
    image = save_image(streams.WHOLE)
    packed = save_image(gzip.compress(streams.WHOLE), format=1)
    cases = [
        (image + OLD, len(OLD), None),
        (packed + OLD, len(OLD), "gzip"),
        (zstandard.compress(packed + OLD), len(OLD), "gzip"),
        (zstandard.compress(packed + OLD) + b"abc", len(OLD), "gzip"),
        (zstandard.compress(packed) + b"abc", 3, "zstd"),
        (Layout(streams.WHOLE + bytes(5000)).build(), 5000, None),
    ]
    for data, count, layer in cases:
        path = vmferry.write("volume", data)
        name = f"{path}#first" if data.startswith(b"QFI") else path
        ran = vmferry.call("verify", "--json", name)
        assert ran.exit_code == 0, ran.output
        said = {"bytes": count, "exact": True, "layer": layer, "warning": None}
        assert json.loads(ran.stdout)["behind"] == said


def test_mapped_ram_in_a_volume(vmferry: Any) -> None:
    """Broken: padding behind a mapped-ram file would be refused, compressed or not."""
    plain, mapped = vmferry.write("plain", streams.WHOLE), vmferry.folder / "mapped"
    assert vmferry.call("convert", "-f", plain, str(mapped), "--to", "mapped-ram").exit_code == 0
    data = mapped.read_bytes()
    for volume, layer in (
        (data + OLD, None),
        (gzip.compress(data + OLD), None),
        (zstandard.compress(data) + OLD, "zstd"),
    ):
        path = vmferry.write("volume", volume)
        ran = vmferry.call("verify", "--json", path)
        assert ran.exit_code == 0, ran.output
        said = {"bytes": len(OLD), "exact": True, "layer": layer, "warning": None}
        assert json.loads(ran.stdout)["behind"] == said
        out = vmferry.folder / "out"
        assert vmferry.call("convert", "-f", path, str(out), "--to", "mapped-ram").exit_code == 0
        assert out.read_bytes() == data


def _undescribed() -> bytes:
    whole: bytes = streams.WHOLE
    return whole[: whole.rindex(b"\0\6") + 1]


def test_a_guess_is_told(vmferry: Any) -> None:
    """Broken: an end that nothing confirms would pass for a certain one, or be refused."""
    bare = _undescribed()
    path = vmferry.write("volume", bare + OLD)
    behind = _checked(vmferry, path, bare)
    assert behind[0]["bytes"] == len(OLD)
    warning = behind[0]["warning"]
    assert "nothing confirms where the stream ends" in warning
    assert behind == [behind[0]] * 5
    for command in ("dump", "verify"):
        assert warning in vmferry.call(command, path).stderr
    assert vmferry.call("diff", path, path).stderr.count(warning) == 2
    out = ("-o", str(vmferry.folder / "ram"))
    assert warning in vmferry.call("extract", "-f", path, *out).stderr
    ran = vmferry.call("receive", f"file:{path}", "--guest", f"dir:{vmferry.folder / 'guest'}")
    assert ran.exit_code == 1
    assert "nothing says where the stream ends" in ran.stderr


def test_length(vmferry: Any) -> None:
    """Broken: whoever knows how long a stream is could not say so."""
    bare = _undescribed()
    path = vmferry.write("volume", OLD[:77] + bare + OLD)
    place = ("--offset", "77", "--length", str(len(bare)))
    out = vmferry.folder / "out"
    for command in (
        ("dump", "--json", path),
        ("verify", "--json", path),
        ("extract", "--json", path, "-o", str(vmferry.folder / "ram")),
    ):
        ran = vmferry.call(*command, *place)
        assert (ran.exit_code, ran.stderr) == (0, "")
        assert json.loads(ran.stdout)["behind"] is None
    assert vmferry.call("convert", "-f", path, str(out), "--to", "plain", *place).exit_code == 0
    assert out.read_bytes() == bare
    ran = vmferry.call("verify", path, *place[:3], "0x10000000")
    assert "give a smaller --length" in ran.stderr
    ran = vmferry.call("verify", path, *place[:3], str(len(bare) - 1))
    assert ran.exit_code == 1
    packed = gzip.compress(bare)
    path = vmferry.write("packed", packed + OLD)
    for name in (path, "-"):
        data = (packed + OLD) if name == "-" else None
        ran = vmferry.call("verify", "--json", name, "--length", str(len(packed)), feed=data)
        assert ran.exit_code == 0, ran.output
        assert json.loads(ran.stdout)["behind"] is None


def test_lengths_of_two_streams(vmferry: Any) -> None:
    """Broken: two streams of known lengths could not be compared without a guess at their ends."""
    bare = _undescribed()
    one = vmferry.write("one", OLD[:77] + bare + OLD)
    two = vmferry.write("two", bare + OLD)
    place = ("--offset", "77", "--length", str(len(bare)))
    other = ("--other-length", str(len(bare)))
    for command in (("diff", one, two), ("verify", one, "--against", two)):
        ran = vmferry.call(*command, *place, *other)
        assert (ran.exit_code, ran.stderr) == (0, "")
        ran = vmferry.call(*command, *place, other[0], str(len(bare) - 1))
        assert ran.exit_code == 1
        assert ran.stderr.startswith(f"vmferry: {two}: offset")
    # The other way round: the second one has something before it.
    swapped = ("--length", str(len(bare)), "--other-offset", "77", *other)
    assert vmferry.call("diff", two, one, *swapped).exit_code == 0


def test_much_behind_takes_no_time(vmferry: Any, monkeypatch: Any) -> None:
    """Broken: a stream before terabytes of compressed zeros would take hours, or fill the disk."""
    monkeypatch.setattr("vmferry.tools.sources.stream_events.MAX_DEVICE_STATE", 1 << 20)
    monkeypatch.setattr("vmferry.tools.sources.source.MAX_COUNTED", 1 << 20)
    path = vmferry.write("volume", gzip.compress(streams.WHOLE + bytes(20 << 20)))
    behind = json.loads(vmferry.call("verify", "--json", path).stdout)["behind"]
    assert behind["exact"] is False
    assert 1 << 20 <= behind["bytes"] < 20 << 20
    assert "at least" in vmferry.call("verify", path).stdout


def test_pipe_that_stays_open() -> None:
    """Broken: a stream from a pipe would be shown before its writer ends, though a guest can forge
    an end in front of the true one."""
    command = [sys.executable, "-m", "vmferry.tools.cli", "verify", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(streams.WHOLE.ljust(PIECE, b"x"))
        process.stdin.flush()
        assert not wait_readable([process.stdout.fileno()], 1)
        process.stdin.close()
        assert process.stdout.readline() == b"-: valid\n"


def test_long_window(vmferry: Any, monkeypatch: Any) -> None:
    """Broken: `zstd --long=31` would be refused though there is memory for it, or break the host
    where there is none."""
    # A frame of `zstd --long=31`: its descriptor says a window of 2 GiB.
    whole = bytearray(zstandard.ZstdCompressor(write_content_size=False).compress(streams.WHOLE))
    assert whole[4] & 0x20 == 0
    whole[5] = 21 << 3
    path = vmferry.write("long", bytes(whole))
    assert vmferry.call("verify", path).exit_code == 0
    monkeypatch.setattr(compressed, "_available", lambda: 1 << 30)
    ran = vmferry.call("verify", path)
    assert ran.exit_code == 1
    asked = "asks for a window of 2.0 GiB, the limit is 512.0 MiB"
    assert asked in ran.stderr
