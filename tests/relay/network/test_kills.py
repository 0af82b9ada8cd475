"""A few migrations with a process killed; `python -m tests.relay.network.kills` makes many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.relay.network.cuts import Guests
from tests.relay.network.kills import Kill, KillRun

OLD, NEW = ("7.2", "7.2"), ("10", "10")
KILLS = {
    "at the source": Kill(0, "near", "end", 0.5, NEW, connections=4),
    "at the source, by its user": Kill(0, "far", "end", 0.5, OLD),
    "at the destination": Kill(0, "source", "end", 0.5, NEW),
    "in a round": Kill(0, "near", "later round", 0.5, OLD),
}


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    return Guests(tmp_path_factory.mktemp("saved"))


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.parametrize("expected", KILLS)
def test_one_guest_is_left(guests: Guests, tmp_path: Path, expected: str) -> None:
    """Broken: laws 5 and 8; a process that is killed leaves two guests, or none."""
    kill = KILLS[expected]
    run = KillRun(kill, guests.get("boot", kill.versions[0]), tmp_path)
    outcome = run.run()
    assert not outcome.faults, (outcome.faults, outcome.told)
    assert run.ended == ("at the source" if expected == "in a round" else expected)
