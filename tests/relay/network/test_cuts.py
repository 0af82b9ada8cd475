"""A few migrations over a link that is cut; `python -m tests.relay.network.cuts` makes many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.relay.network.cuts import Guests
from tests.relay.network.guests import beats
from tests.relay.network.plan import MIB, Plan
from tests.relay.network.run import Run
from tests.relay.network.wire import Wire


def plan(
    kind: str,
    versions: tuple[str, str],
    phase: str,
    *,
    multifd: bool = False,
    connections: int = 1,
    compress: str = "none",
    reset: bool = True,
    seconds: float = 1.5,
    reconnect: float = 300,
) -> Plan:
    return Plan(
        *(0, kind, versions, multifd, connections, compress, 30 * MIB, 15 * MIB),
        *(phase, reset, seconds, 0.5, reconnect),
    )


PLANS = [
    plan("boot", ("7.2", "7.2"), "round 0"),
    plan("boot", ("10", "10"), "end", compress="zstd", connections=4),
    plan("boot", ("7.2", "10"), "return path", reset=False, multifd=True),
    plan("boot", ("7.2", "7.2"), "later round", seconds=6, reconnect=1),
    plan("linux", ("10", "10"), "switchover", multifd=True, connections=4, compress="zstd"),
]


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    return Guests(tmp_path_factory.mktemp("saved"))


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("wanted", PLANS, ids=str)
def test_a_cut_costs_the_guest_nothing(guests: Guests, tmp_path: Path, wanted: Plan) -> None:
    """Broken: a guest would be lost, run twice, or lose what it knew, as a link breaks."""
    Wire().close()
    saved = guests.get(wanted.kind, wanted.versions[0])
    outcome = Run(wanted, saved, tmp_path).run()
    assert not outcome.faults, (outcome.faults, outcome.told)
    assert not outcome.missed


def test_numbers_are_read() -> None:
    """Broken: a number that is missing, or a bad checksum, would not be noticed."""
    assert beats(b"00000001\n00000002\n0000000A\n") == [1, 2, 10]
    assert beats(b"BEAT 1 ok\r\nBEAT 2 BAD\r\nBEAT 4 ok\r\n") == [1, -1, 4]
    assert beats(b"[ 1.0] kernel\r\nBEAT 1 o") == []
