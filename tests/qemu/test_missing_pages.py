"""Memory that a real QEMU does not send, as it is unplugged, and memory that it sends elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.qemu.machine import BareMachine, qemu_command, vmferry

MEMORY = (
    *("-m", "16,slots=4,maxmem=1G"),
    *("-object", "memory-backend-ram,id=vmem0,size=256M"),
    *("-device", "virtio-mem-pci,id=vm0,memdev=vmem0,requested-size=0"),
    *("-object", "memory-backend-ram,id=vmem1,size=128M"),
    *("-device", "virtio-mem-pci,id=vm1,memdev=vmem1,requested-size=64M,block-size=4M"),
)
"""Two devices, of which no guest has plugged anything in."""


@pytest.mark.parametrize(
    ("version", "machine", "early"),
    [("7.2", "q35", False), ("10", "q35", True), ("10", "pc-q35-7.2", False)],
)
def test_unplugged_memory(version: str, machine: str, early: bool, tmp_path: Path) -> None:
    """Broken: no saved guest with virtio-mem would be valid."""
    command, environment = qemu_command(version)
    stream, folder = tmp_path / "stream", tmp_path / "source"
    options = ("-machine", machine, "-S", *MEMORY)
    source = BareMachine(command, folder, *options, environment=environment)
    try:
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    found = json.loads(vmferry("dump", "--json", str(stream)).stdout)
    names = [device["name"] for device in found["devices"] if "virtio-mem" in device["name"]]
    assert len(names) == (4 if early else 2)
    assert [block["zero"] for block in found["blocks"][:2]] == [0, 0]
    ran = vmferry("verify", str(stream))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{stream}: valid\n", "")
    ran = vmferry("extract", str(stream), "--all", "-o", str(tmp_path / "all"))
    assert (ran.returncode, ran.stderr) == (0, "")
