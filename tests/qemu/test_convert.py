"""Test that a stock QEMU takes what `vmferry convert` makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.qemu.machine import Machine, rebuilt_stream, saved_stream, stock_ram, vmferry


@pytest.mark.parametrize(
    ("container", "unpack"), [("plain", "cat"), ("zstd", "zstd -dc"), ("gzip", "gzip -dc")]
)
def test_qemu_takes_it(version: str, container: str, unpack: str, tmp_path: Path) -> None:
    """Broken: a guest would not come back from a stream that we put into another container."""
    stream, packed, out = saved_stream(version, tmp_path), tmp_path / "xz", tmp_path / "out"
    with open(packed, "wb") as file:
        subprocess.run(["xz", "-0", "-c", str(stream)], stdout=file, check=True)
    ran = vmferry("convert", str(packed), str(out), "--to", container)
    assert ran.returncode == 0, ran.stderr
    guest = Machine(version, tmp_path / "guest", "-incoming", f"exec:{unpack} < {out}")
    try:
        guest.wait_for("completed")
        guest.wait_for_beats()
    finally:
        guest.stop()


def test_qemu_takes_a_mapped_ram_file(tmp_path: Path) -> None:
    """Broken: RAM would be lost on the way into a mapped-ram file, or QEMU would not read it."""
    stream, out = saved_stream("10", tmp_path), tmp_path / "out"
    ran = vmferry("convert", str(stream), str(out), "--to", "mapped-ram")
    assert ran.returncode == 0, ran.stderr
    again = rebuilt_stream("10", tmp_path, out, capabilities=("mapped-ram",), uri=f"file:{out}")
    checked = vmferry("verify", str(stream), *stock_ram(again, tmp_path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_mapped_ram_file_becomes_a_stream(tmp_path: Path) -> None:
    """Broken: neither QEMU nor `receive` would take what a mapped-ram file was converted into, or
    build another guest of it."""
    mapped, out = tmp_path / "mapped", tmp_path / "out"
    source = Machine("10", tmp_path / "source")
    try:
        source.wait_for_beats()
        source.enable("mapped-ram")
        source.migrate(f"file:{mapped}")
    finally:
        source.stop()
    ran = vmferry("convert", str(mapped), str(out), "--to", "plain")
    assert ran.returncode == 0, ran.stderr
    received = stock_ram(out, tmp_path)
    checked = vmferry("verify", str(mapped), *received)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    again = rebuilt_stream("10", tmp_path, out)
    checked = vmferry("verify", str(again), *received)
    assert checked.returncode == 0, checked.stdout + checked.stderr
