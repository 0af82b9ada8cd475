"""Test, on made-up rounds, how far a guest is slowed down, and that it is let go at any end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.guest.errors import MigrationCancelledError, MigrationError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol.errors import ParameterError
from vmferry.protocol.states import MigrationStatus
from vmferry.sender.convergence import Round
from vmferry.sender.coordinator import Sender
from vmferry.sender.figures import Figures
from vmferry.sender.parameters import SendParameters
from vmferry.sender.processes import Processes
from vmferry.sender.throttle import AutoConverge, ThrottleParameters
from vmferry.transport.settings import TrackerKind

from tests.patience import wait_until
from tests.sender.incoming import Incoming


def rounds(throttle: AutoConverge, *sent: int, seconds: float = 1.0) -> list[int]:
    """Return the percentage after each of these rounds."""
    found = []
    for number, size in enumerate(sent):
        throttle.round_done(Round(number, size, size, seconds, seconds))
        found.append(throttle.percentage)
    return found


def test_steps() -> None:
    """Broken: the guest would be slowed down too soon, too fast or beyond what was allowed."""
    throttle = AutoConverge(ThrottleParameters(30, 25, 70))
    assert rounds(throttle, *[100] * 9) == [0, 0, 30, 30, 55, 55, 70, 70, 70]
    assert throttle.at_maximum


def test_rounds_that_shrink_cost_the_guest_nothing() -> None:
    """Broken: a guest that would have converged anyway would be slowed down."""
    assert not any(rounds(AutoConverge(ThrottleParameters()), 1000, 500, 250, 125, 62, 31))


def test_one_bad_round_is_not_enough() -> None:
    """Broken: a burst of writes would slow the guest down."""
    assert not any(rounds(AutoConverge(ThrottleParameters()), 1000, 900, 300, 290, 100, 99, 20))


def test_short_rounds_are_judged_together() -> None:
    """Broken: with a small downtime limit all steps would be taken within a second."""
    percentages = rounds(AutoConverge(ThrottleParameters()), *[100] * 33, seconds=0.125)
    assert percentages[-1] == 30


@given(st.lists(st.integers(0, 1 << 40)), st.integers(1, 99), st.integers(1, 99))
def test_only_up_to_the_maximum(sent: list[int], first: int, step: int) -> None:
    """Broken: a percentage of 100 would stop the guest."""
    parameters = ThrottleParameters(first, step, max(first, 60))
    for percentage in rounds(AutoConverge(parameters), *sent):
        assert percentage <= parameters.maximum


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((0, 10, 99), "cpu_throttle_initial: 0 is not .* of 1 to 99"),
        ((20, 100, 99), "cpu_throttle_increment: 100 is not .* of 1 to 99"),
        ((20, 10, 100), "max_cpu_throttle: 100 is not .* of 1 to 99"),
        ((50, 10, 40), "max-cpu-throttle 40 is less than cpu-throttle-initial 50"),
        (
            (20, 10, 99, 101),
            "throttle_trigger_threshold: 101 is not .* of 1 to 100",
        ),
    ],
)
def test_impossible_percentages(parameters: tuple[int, ...], message: str) -> None:
    """Broken: a mistyped percentage would stop the guest, or do nothing in silence."""
    with pytest.raises(ParameterError, match=message):
        ThrottleParameters(*parameters)


class Watched(SyntheticGuest):
    """Remembers how it was slowed down."""

    percentages: list[int]

    def throttle(self, percentage: int) -> None:
        self.percentages.append(percentage)
        super().throttle(percentage)


@pytest.fixture
def source() -> Iterator[Watched]:
    """Yield a guest that writes 64 pages over and over: more than can be sent, even if slow."""
    guest = Watched.parse("1M,dirty-rate=8M,hot=25%,zero=0")
    assert isinstance(guest, Watched)
    guest.percentages = []
    yield guest
    guest.close()


def outrunning(sender: Sender, source: Watched) -> Sender:
    """Hold each round until the guest has written all its pages, unless slowed by 90 % or more."""

    def hold(_: int) -> None:
        written = source.counter() + 64
        wait_until(
            lambda: (
                source.counter() >= written
                or source.percentages[-1:] in ([90], [99])
                or not source.running
            )
        )

    sender.on_round = hold
    return sender


SLOW = SendParameters(
    max_bandwidth=256 << 10,
    downtime_limit=0.0001,
    auto_converge=ThrottleParameters(40, 50),
    # Rounds are held where they begin; marks would be counted where they end.
    tracker=TrackerKind.DIGESTS,
)


def test_guest_that_outruns_the_link_is_slowed_down_until_it_fits(
    source: Watched, incoming: Incoming
) -> None:
    """Broken: auto-converge would not bring a migration to its end."""
    seen: list[Figures] = []
    figures = outrunning(Sender(source, incoming.address, SLOW), source).run(seen.append)
    incoming.arrives(source)
    assert source.percentages[:2] == [40, 90]
    assert source.percentages[-1] == 0
    assert figures.throttle is not None
    assert (figures.throttle.percentage, figures.throttle.highest) == (0, source.percentages[-2])
    assert any(one.as_qmp()["cpu-throttle-percentage"] == 40 for one in seen)


def test_guest_is_slowed_down_with_marks(
    source: Watched, monkeypatch: pytest.MonkeyPatch, incoming: Incoming
) -> None:
    """Broken: with a tracker that counts, auto-converge would not slow a guest that outruns the
    link, or too late."""
    count = Processes.dirty_bytes

    def outrun(processes: Processes) -> int | None:
        # As `outrunning`, where a round ends: that is where marks are counted.
        hold(0)
        return count(processes)

    sender = Sender(source, incoming.address, replace(SLOW, tracker=TrackerKind.USERFAULTFD))
    hold = outrunning(sender, source).on_round
    sender.on_round = lambda _: None
    monkeypatch.setattr(Processes, "dirty_bytes", outrun)
    figures = sender.run()
    incoming.arrives(source)
    assert figures.tracker == "userfaultfd"
    assert source.percentages[:2] == [40, 90]
    assert source.percentages[-1] == 0
    assert figures.throttle is not None
    assert figures.throttle.highest == source.percentages[-2]


def test_cancelled_guest_runs_at_full_speed(source: Watched, incoming: Incoming) -> None:
    """Broken: a cancelled migration would leave the guest slow for ever."""
    sender = outrunning(Sender(source, incoming.address, SLOW), source)

    def cancel(figures: Figures) -> None:
        if figures.throttle is not None and figures.throttle.percentage:
            sender.cancel()

    with pytest.raises(MigrationCancelledError):
        sender.run(cancel)
    incoming.join()
    assert source.percentages == [40, 0]
    assert source.running


def test_guest_of_a_failed_migration_runs_at_full_speed(
    source: Watched, incoming: Incoming
) -> None:
    """Broken: a broken link would leave the guest slow for ever."""
    sender = outrunning(Sender(source, incoming.address, SLOW), source)

    def kill(figures: Figures) -> None:
        if figures.throttle is not None and figures.throttle.percentage:
            incoming.receiver.cancel()

    with pytest.raises(MigrationError):
        sender.run(kill)
    incoming.join()
    assert sender.states.state is MigrationStatus.FAILED
    assert source.percentages == [40, 0]
    assert source.running
