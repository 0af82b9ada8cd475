"""Whole migrations under random signals and on bad links: sixty runs on four Pythons.

`python -m tests.system.chaos --runs 2000` does more of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.qemu.machine import qemu_command

from . import endurance
from .many import Figures, Runs, run_many
from .stock import VERSIONS, save_guests

SEED = 20261125
RUNS, STOCK_RUNS = 60, 24
JOBS = 6
PYTHONS = 4
"""Versions of Python on which the tests run; each does its part of the runs."""


def _part(count: int) -> range:
    return range(count)[sys.version_info.minor % PYTHONS :: PYTHONS]


def _do(runs: Runs, numbers: range) -> None:
    print(f"seed {runs.seed}, runs {list(numbers)}")
    before = {path.name for path in Path("/dev/shm").iterdir()}
    figures = Figures()
    run_many(runs, numbers, JOBS, figures.add)
    print(figures.summary())
    assert figures.failed == []
    assert {path.name for path in Path("/dev/shm").iterdir()} <= before


def test_no_run_breaks_a_rule() -> None:
    """Broken: a signal or a bad link at some moment would cost the guest, or make two of it."""
    _do(Runs(SEED, long=False), _part(RUNS))


@pytest.mark.parametrize("side", ["source", "destination"])
def test_no_run_with_qemu_breaks_a_rule(side: str, tmp_path: Path) -> None:
    """Broken: the handover would be right between two of our own ends only."""
    for version in VERSIONS:
        qemu_command(version)
    saved = save_guests(tmp_path) if side == "destination" else {}
    _do(Runs(SEED, False, side, saved), _part(STOCK_RUNS))


def test_services_do_not_grow() -> None:
    """Broken: a service that lives for long would run out of memory, descriptors or processes."""
    used = endurance.endure(20)
    grown = endurance.growth(used)
    assert {name for name, limit in endurance.GROWTH.items() if grown[name] > limit} == set(), used
