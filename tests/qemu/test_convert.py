"""What `vmferry convert` makes, given to a stock QEMU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.qemu.machine import Machine, saved_stream, vmferry


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
