"""What every test stands on."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of what is tested; each test has a timeout of its own.
settings.register_profile("vmferry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vmferry")

# The tests of the suite stay until the end: the collector does not have to go through them again.
gc.disable()

SLOW_FOLDERS = {"system"}
"""Folders of tests that are about processes and time, not about Python's versions."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, so that other Pythons can run what can differ between them."""
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder == "qemu":
            item.add_marker("qemu")
        elif folder in SLOW_FOLDERS:
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Keep what was collected out of the garbage collector's way, which runs from here on."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _client_loop() -> Iterator[None]:
    """The QMP client makes an event loop where there is none, and leaves it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
