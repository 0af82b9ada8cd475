"""Every test runs with each QEMU; the QEMUs of a migration, if it wants them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.machine import qemu_command
from tests.qemu.running import Receiving, Running


@pytest.fixture(params=["7.2", "10"])
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    qemu_command(name)
    return name


@pytest.fixture
def source(version: str, tmp_path: Path) -> Iterator[Running]:
    """Run a QEMU whose guest shows that it runs."""
    source = Running(version, tmp_path / "source")
    try:
        source.wait_for_beats()
        yield source
    finally:
        source.stop()


@pytest.fixture
def destination(version: str, tmp_path: Path) -> Iterator[Running]:
    """Run a QEMU that listens for a guest."""
    incoming = f"unix:{tmp_path}/in"
    destination = Running(version, tmp_path / "destination", "-incoming", incoming)
    try:
        yield destination
    finally:
        destination.stop()


@pytest.fixture
def receiving(version: str, tmp_path: Path) -> Iterator[Receiving]:
    """Run a QEMU, and a command that receives a guest for it."""
    receiving = Receiving(version, tmp_path)
    try:
        yield receiving
    finally:
        receiving.close()
