"""Every test runs with each QEMU."""

from __future__ import annotations

import pytest

from tests.qemu.machine import qemu_command


@pytest.fixture(params=["7.2", "10"])
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    qemu_command(name)
    return name
