"""The outline of what a real QEMU wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from vmferry.protocol.fast.outline import outline
from vmferry.tools.dump.pieces import summarise
from vmferry.tools.dump.summary import from_outline

from tests.qemu.machine import Machine


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_what_qemu_writes_is_ordinary(version: str, machine: str, tmp_path: Path) -> None:
    """Broken: `dump` would show something else than there is, or be slow for every stream."""
    stream = tmp_path / "stream"
    source = Machine(version, tmp_path / "source", "-M", machine)
    try:
        source.wait_for_beats()
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    found = from_outline(outline(stream.read_bytes()))
    with stream.open("rb") as file:
        assert found.as_json() == summarise(file).as_json()
