"""Outputs that cannot be written: the error names them, and nothing half written stays behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.conftest import to_bytes
from tests.protocol.kinds import KINDS

LIMIT = 256 << 10
"""Bytes of the largest file: less than the RAM of the guest, more than its stream."""

EXTRACTIONS = {
    "raw": ["extract", "-", "-o", "{out}"],
    "elf": ["extract", "-", "-o", "{out}", "--format", "elf"],
    "lime": ["extract", "-", "-o", "{out}", "--format", "lime"],
    "all": ["extract", "-", "-o", "{out}", "--all"],
}
CONVERSIONS = {
    "plain": ["convert", "-", "{out}", "--to", "plain"],
    "zstd": ["convert", "-", "{out}", "--to", "zstd"],
    "mapped-ram": ["convert", "-", "{out}", "--to", "mapped-ram"],
}


def run_limited(arguments: list[str], feed: bytes, size: int) -> subprocess.CompletedProcess[bytes]:
    """`vmferry`, which may write no file of more than `size` bytes."""
    return subprocess.run(
        [sys.executable, "-m", "vmferry.tools.cli", *arguments],
        input=feed,
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


@pytest.mark.parametrize("kind", [*EXTRACTIONS, *CONVERSIONS])
def test_file_too_large(streams: Any, tmp_path: Path, kind: str) -> None:
    """Broken: an error of the output would be told of the input, or half of it be left."""
    out, size = tmp_path / "out", 4096 if kind in CONVERSIONS else LIMIT
    arguments = [word.format(out=out) for word in {**EXTRACTIONS, **CONVERSIONS}[kind]]
    ran = run_limited(arguments, streams.whole, size)
    shown = f"{out}/000-pc.ram" if kind == "all" else out
    assert (ran.returncode, ran.stderr.decode()) == (1, f"vmferry: {shown}: File too large\n")
    assert os.listdir(tmp_path) == []


def test_disk_too_large(tmp_path: Path) -> None:
    """Broken: an error of a disk's image would be told of the input."""
    out = tmp_path / "out"
    feed = to_bytes(KINDS["block"])
    ran = run_limited(["extract", "-", "--disks", str(out)], feed, LIMIT)
    assert ran.returncode == 1
    assert ran.stderr.decode().startswith(f"vmferry: {out}/000-")
    assert ran.stderr.decode().endswith(": File too large\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["verify", "diff"])
def test_memory_too_small(vmferry: Any, streams: Any, command: str) -> None:
    """Broken: what is wrong with our own memory would be told of the stream."""
    path = vmferry.write("stream", streams.whole)
    against = [path] if command == "diff" else ["--against", path]
    ran = run_limited([command, path, *against], b"", LIMIT)
    told = "vmferry: RAM block pc.ram, in memory: File too large\n"
    assert (ran.returncode, ran.stderr.decode()) == (1, told)


@pytest.mark.parametrize("kind", ["plain", "gzip", "libvirt"])
def test_full_standard_output(vmferry: Any, streams: Any, kind: str) -> None:
    """Broken: an error of the output would be told of the input, or told twice."""
    xml = ["--xml", vmferry.write("xml", b"<domain/>")] if kind == "libvirt" else []
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "vmferry.tools.cli", "convert", "-", "-", "--to", kind, *xml],
            input=streams.whole,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    told = "vmferry: standard output: No space left on device\n"
    assert (ran.returncode, ran.stderr.decode()) == (1, told)
