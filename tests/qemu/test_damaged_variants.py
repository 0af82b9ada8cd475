"""Damaged streams of a real QEMU: no hang, no memory without bounds, no traceback.

`python -m tests.fuzz.damaged --count 10000 STREAM...` does the same for longer.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.damaged import run
from tests.qemu.machine import saved_stream


def test_damaged_variants(version: str, tmp_path: Path) -> None:
    """Broken: a damaged file would hang the tools, exhaust the host, or end in a traceback."""
    figures = run([saved_stream(version, tmp_path).read_bytes()], 64)
    assert figures.variants.total() == 64
