"""Whole migrations under random signals and on bad links, sixty of them.

`python -m tests.system.chaos --runs 2000` does more.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.qemu.machine import qemu_command

from . import endurance
from .many import Figures, Runs, run_many
from .stock import VERSIONS, save_guests

SEED = 20261125
RUNS, STOCK_RUNS = 60, 12
JOBS = 6
BEGIN_WITHIN = 240
"""Seconds after which no further run is begun: a slow machine does fewer, from the same seed."""
LAST = 400
"""Seconds more that the runs may take which were begun by then."""


def _do(runs: Runs, count: int) -> None:
    print(f"seed {runs.seed}")
    before = {path.name for path in Path("/dev/shm").iterdir()}
    figures = Figures()
    run_many(runs, range(count), JOBS, figures.add, BEGIN_WITHIN)
    print(figures.summary())
    assert sum(figures.outcomes.values()) >= JOBS
    assert figures.failed == []
    assert {path.name for path in Path("/dev/shm").iterdir()} <= before


@pytest.mark.timeout(BEGIN_WITHIN + LAST)
def test_no_run_breaks_a_rule() -> None:
    """Broken: a signal or a bad link at some moment would cost the guest, or make two of it."""
    _do(Runs(SEED, long=False), RUNS)


@pytest.mark.timeout(BEGIN_WITHIN + LAST)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_no_run_with_qemu_breaks_a_rule(side: str, tmp_path: Path) -> None:
    """Broken: the handover would be right between two of our own ends only."""
    for version in VERSIONS:
        qemu_command(version)
    saved = save_guests(tmp_path) if side == "destination" else {}
    _do(Runs(SEED, False, side, saved), STOCK_RUNS)


def test_services_do_not_grow() -> None:
    """Broken: a service that lives for long would run out of memory, descriptors or processes."""
    used = endurance.endure(12)
    grown = endurance.growth(used)
    assert {name for name, limit in endurance.GROWTH.items() if grown[name] > limit} == set(), used
