"""Test what is made of the answers of a QEMU that migrates, without a QEMU."""

from __future__ import annotations

from typing import Any

import pytest
from vmferry.control.qemu.answers import before_shut
from vmferry.control.qemu.rounds import Rounds
from vmferry.control.qemu.wanted import check_parameters, goes_both_ways, wanted
from vmferry.protocol.errors import ParameterError, StreamError
from vmferry.protocol.return_path import pong, shut
from vmferry.protocol.states import MigrationStatus
from vmferry.sender.parameters import SendParameters
from vmferry.sender.throttle import ThrottleParameters
from vmferry.transport.settings import Disks, TrackerKind
from vmferry.transport.uri import parse_uri

MIB = 1 << 20


class Told:
    """The answers of a QEMU whose guest dirties `dirty` bytes in each round of a second."""

    def __init__(self, rounds: Rounds, dirty: int) -> None:
        self.rounds, self.dirty = rounds, dirty
        self.now, self.sent = 0.0, 0

    def round(self, number: int, **more: Any) -> None:
        ram = {
            "total": 64 * MIB,
            "dirty-sync-count": number,
            "transferred": self.sent,
            "remaining": self.dirty,
        }
        self.rounds.look({"status": "active", "ram": ram, **more})
        self.now += 1
        self.sent += 64 * MIB if number == 1 else self.dirty


def told(parameters: SendParameters, dirty: int) -> Told:
    clock: list[Told] = []
    rounds = Rounds(
        parameters, lambda: parameters.max_bandwidth, lambda: clock[0].now if clock else 0.0
    )
    clock.append(Told(rounds, dirty))
    return clock[0]


def test_rounds_that_do_not_shrink_are_a_stall() -> None:
    """Broken: nobody would be told that a QEMU's migration never ends."""
    qemu = told(SendParameters(max_bandwidth=8 * MIB), 8 * MIB)
    for number in range(1, 6):
        qemu.round(number)
    assert qemu.rounds.stall is None
    qemu.round(6)
    stall = qemu.rounds.stall
    assert stall is not None
    assert "each finds 8.0 MiB to send, at 8.0 MiB/s" in stall.reason
    figures = qemu.rounds.figures(MigrationStatus.ACTIVE)
    assert (figures.stall, figures.dirty_sync_count) == (stall, 6)
    assert figures.remaining_time is None


def test_a_rest_that_fits_is_no_stall() -> None:
    """Broken: users would be told of a stall where QEMU is about to stop its guest."""
    qemu = told(SendParameters(downtime_limit=2.0), 8 * MIB)
    for number in range(1, 9):
        qemu.round(number)
    assert qemu.rounds.stall is None


def test_a_guest_that_may_be_slowed_further_is_no_stall() -> None:
    """Broken: --on-stall cancel would not give QEMU's auto-converge the time that it needs."""
    throttle = ThrottleParameters(initial=20, maximum=50)
    qemu = told(SendParameters(auto_converge=throttle), 8 * MIB)
    for number in range(1, 9):
        qemu.round(number, **{"cpu-throttle-percentage": 40})
    assert qemu.rounds.stall is None
    for number in range(9, 16):
        qemu.round(number, **{"cpu-throttle-percentage": 50})
    assert qemu.rounds.stall is not None
    throttled = qemu.rounds.figures(MigrationStatus.ACTIVE).throttle
    assert throttled is not None
    assert throttled.highest == 50


def test_the_last_word_is_found() -> None:
    """Broken: a carrier would pass SHUT with the messages before it, or wait for ever."""
    first, last = pong(1), shut(0)
    assert before_shut(first + first) == (2 * len(first), False)
    assert before_shut(first + last) == (len(first + last), True)
    assert before_shut(first + last[:-1]) == (len(first), False)
    assert before_shut(first + last + first) == (len(first + last), True)
    with pytest.raises(StreamError):
        before_shut(b"nothing of the kind")


@pytest.mark.parametrize(
    ("uri", "parameters"),
    [
        ("tcp:h:1", SendParameters(workers=2)),
        ("tcp:h:1", SendParameters(tracker=TrackerKind.DIGESTS)),
        ("tcp:h:1", SendParameters(disks=Disks.ALL)),
        ("exec:cat", SendParameters(multifd_channels=2)),
        ("tcp:h:1", SendParameters(mapped_ram=True)),
    ],
    ids=str,
)
def test_what_no_qemu_can_do_is_refused(uri: str, parameters: SendParameters) -> None:
    """Broken: an option would silently have no effect."""
    with pytest.raises(ParameterError):
        check_parameters(parameters, parse_uri(uri))


def test_options_become_settings() -> None:
    """Broken: QEMU would migrate with other limits than those that the user gave."""
    parameters = SendParameters(
        max_bandwidth=5 * MIB, downtime_limit=0.07, multifd_channels=3, mapped_ram=False
    )
    made = wanted(parameters, return_path=True, paced_here=False)
    assert made.capabilities["multifd"]
    assert made.capabilities["return-path"]
    assert not made.capabilities["xbzrle"]
    assert made.parameters["max-bandwidth"] == 5 * MIB
    assert made.parameters["downtime-limit"] == 70
    assert made.parameters["multifd-channels"] == 3
    assert wanted(parameters, return_path=True, paced_here=True).parameters["max-bandwidth"] == 0


def test_some_channels_have_no_way_back() -> None:
    """Broken: QEMU would wait for the answer of a file."""
    assert goes_both_ways(parse_uri("tcp:h:1"))
    assert not goes_both_ways(parse_uri("file:a"))
    assert not goes_both_ways(parse_uri("exec:cat"))
