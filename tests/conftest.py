"""Provide options, markers and fixtures for all tests."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of what is tested; each test has a timeout of its own.
settings.register_profile("vmferry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vmferry")

# The tests of the suite stay until the end: the collector does not have to go through them again.
gc.disable()

# Under nohup SIGHUP is ignored, and commands keep that; they do not inherit a handler.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

SLOW_FOLDERS = {"system"}
"""Folders of tests that are about processes and time, not about Python's versions."""
WHOLE_FILES = {"test_house.py"}
"""Files of which every case always runs: a case is a folder of the project, and takes no time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says how many cases of each test run."""
    parser.addoption(
        "--cases",
        type=int,
        default=0,
        metavar="N",
        help="of each parametrized test, run N cases evenly spaced in its table; 0: all (default)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and keep as many cases of each as `--cases` says."""
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder == "qemu":
            item.add_marker("qemu")
        elif folder in SLOW_FOLDERS:
            item.add_marker("slow")
    count: int = config.getoption("--cases")
    if count:
        kept = evenly_spaced(items, count)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def evenly_spaced(items: list[pytest.Item], count: int) -> set[pytest.Item]:
    """Return at most `count` cases of each test: of more than one, the first and the last too."""
    families: dict[str, list[pytest.Item]] = {}
    for item in items:
        families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept: set[pytest.Item] = set()
    for family in families.values():
        whole = family[0].path.name in WHOLE_FILES
        steps = len(family) if whole else min(count, len(family))
        last = len(family) - 1
        kept.update(family[round(i * last / max(steps - 1, 1))] for i in range(steps))
    return kept


def pytest_collection_finish() -> None:
    """Keep what was collected out of the garbage collector's way, which runs from here on."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _client_loop() -> Iterator[None]:
    """Close the event loop that the QMP client makes where there is none, and leaves open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
