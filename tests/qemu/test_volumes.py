"""Streams of a real QEMU in what is larger than they are, beside what it makes of them itself."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from subprocess import PIPE

import lz4.frame  # type: ignore[import-untyped]

from tests.qemu.machine import rebuilt_stream, saved_stream, stock_ram, vmferry

OLD = b"old data of the volume " * 3000


def _by(*command: str) -> Callable[[bytes], bytes]:
    return lambda data: subprocess.run(command, input=data, stdout=PIPE, check=True).stdout


COMPRESS = (
    _by("zstd", "-q", "-c"),
    _by("zstd", "-q", "-c", "--long=31", "--no-content-size"),
    _by("xz", "-0", "-c", "--format=lzma"),
    _by("lzop", "-c"),
    gzip.compress,
    lz4.frame.compress,
)


def _verify(path: Path, *options: str) -> dict[str, object]:
    ran = vmferry("verify", "--json", str(path), *options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found: dict[str, object] = json.loads(ran.stdout)
    return found


def test_volumes(version: str, tmp_path: Path) -> None:
    """Broken: what `exec:zstd > /dev/vg/lv` leaves would not be read, or not as QEMU reads it."""
    stream = saved_stream(version, tmp_path)
    data, volume = stream.read_bytes(), tmp_path / "volume"
    again = rebuilt_stream(version, tmp_path, stream)
    ram = stock_ram(again, tmp_path)
    assert _verify(stream, *ram)["behind"] is None
    for tail in (bytes(70_000), OLD):
        volume.write_bytes(data + tail)
        said = {"bytes": len(tail), "exact": True, "layer": None, "warning": None}
        assert _verify(volume, *ram)["behind"] == said
        out = tmp_path / "out"
        assert vmferry("convert", str(volume), str(out), "--to", "plain", "-f").returncode == 0
        assert out.read_bytes() == data
    for compress, tail in zip(COMPRESS, cycle((bytes(70_000), OLD)), strict=False):
        volume.write_bytes(compress(data) + tail)
        behind = _verify(volume, *ram)["behind"]
        assert isinstance(behind, dict)
        assert (behind["bytes"], behind["exact"]) == (len(tail), True)


def test_inside_of_another_file(version: str, tmp_path: Path) -> None:
    """Broken: a stream that a program keeps in a file of its own could not be looked at."""
    stream = saved_stream(version, tmp_path)
    data, file = stream.read_bytes(), tmp_path / "file"
    for inside in (data, COMPRESS[0](data)):
        file.write_bytes(os.urandom(12_345) + inside + OLD)
        ran = vmferry("verify", str(file))
        assert ran.returncode == 1
        assert "begins at offset 12345: --offset 12345" in ran.stderr
        assert vmferry("diff", str(file), str(stream), "--offset", "12345").returncode == 0
