"""Test, on made-up rounds, when the guest is stopped and what is forecast of further rounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.sender.convergence import Convergence, Round

LINK = 100e6


def known(dirty_rate: float, limit: float = 0.3, scan: float = 0.0) -> Convergence:
    """Return a forecast after three rounds over 1 GB at 100 MB/s; the guest writes all over."""
    convergence, seconds = Convergence(10**9, limit), 10.0 + scan
    convergence.round_done(Round(0, 10**9, 10**9, seconds, 10.0))
    for number in (1, 2):
        dirty = round(min(10**9, dirty_rate * seconds))
        seconds = dirty / LINK + scan
        convergence.round_done(Round(number, dirty, dirty, seconds, dirty / LINK))
    return convergence


def test_what_shrinks_on_the_wire_is_less_to_send() -> None:
    """Broken: a guest whose changes are small would never be thought ready."""
    convergence = Convergence(1 << 30, downtime_limit=0.3)
    convergence.round_done(Round(0, 1 << 30, 1 << 30, 10.0, 10.0))
    convergence.round_done(Round(1, 300_000_000, 3_000_000, 9.0, 9.0))
    assert convergence.expected_downtime(LINK) == pytest.approx(0.03)
    assert convergence.should_switch_over(LINK)


def test_switchover_needs_a_round_that_fits() -> None:
    """Broken: the guest would be paused for longer than the downtime limit allows."""
    convergence = Convergence(1 << 30, downtime_limit=0.3)
    convergence.round_done(Round(0, 1 << 30, 1 << 30, 10.0, 10.0))
    assert not convergence.should_switch_over(LINK)
    convergence.round_done(Round(1, 300_000_000, 300_000_000, 9.0, 9.0))
    assert not convergence.should_switch_over(LINK)
    convergence.round_done(Round(2, 20_000_000, 20_000_000, 0.5, 0.5))
    assert convergence.should_switch_over(LINK)


def test_nothing_is_forecast_of_an_unknown_guest() -> None:
    """Broken: a number without ground would be shown to the user."""
    convergence = Convergence(1 << 30, downtime_limit=0.3)
    assert convergence.remaining_seconds(LINK, LINK) is None
    convergence.round_done(Round(0, 1 << 30, 1 << 30, 10.0, 10.0))
    assert convergence.remaining_seconds(LINK, LINK) is None
    assert convergence.expected_downtime(LINK) == 0.3


def test_each_round_is_the_writes_of_the_one_before() -> None:
    """Broken: the time shown would not be the time taken."""
    # 50 MB/s against 100: rounds took 5 s and 2.5 s; to come are 1.25 s, ... and one that fits.
    convergence = known(50e6)
    rounds = [2.5 / 2**n for n in range(1, 5)]
    assert convergence.remaining_seconds(LINK, LINK) == pytest.approx(sum(rounds))


def test_the_same_pages_over_and_over_stay_dirty() -> None:
    """Broken: a guest would be stopped for the time that its hot pages take, whatever the limit."""
    convergence = Convergence(10**9, downtime_limit=0.3)
    convergence.round_done(Round(0, 10**9, 10**9, 10.0, 10.0))
    for number, seconds in ((1, 0.8), (2, 0.8), (3, 0.8)):
        convergence.round_done(Round(number, 80_000_000, 80_000_000, seconds, seconds))
        assert convergence.expected_sent == pytest.approx(80_000_000)
        assert not convergence.should_switch_over(LINK)
        assert convergence.remaining_seconds(LINK, LINK) is None


def test_finding_dirty_pages_takes_time_too() -> None:
    """Broken: with much RAM and little to send, the downtime would be forecast as nothing."""
    convergence = known(1e6, scan=2.0)
    assert convergence.should_switch_over(LINK)
    assert convergence.expected_downtime(LINK) == pytest.approx(2.0, rel=0.05)
    assert convergence.remaining_seconds(LINK, LINK) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("rate", [100e6, 150e6, 1e9])
def test_a_guest_that_outruns_the_link_has_no_end(rate: float) -> None:
    """Broken: the user would wait for an end that is not to come."""
    assert known(rate).remaining_seconds(LINK, LINK) is None


@given(
    st.floats(0, 2e9),
    st.floats(1e5, 1e10),
    st.floats(0, 10),
    st.floats(0, 5),
)
def test_a_forecast_always_comes(rate: float, link: float, limit: float, scan: float) -> None:
    """Broken: the migration would hang in its own forecast."""
    left = known(rate, limit, scan).remaining_seconds(link, link)
    assert left is None or (left >= 0 and math.isfinite(left))


def test_what_is_counted_decides() -> None:
    """Broken: a tracker that knows what is dirty would take a round more to find it out."""
    convergence = Convergence(1 << 30, downtime_limit=0.3)
    convergence.round_done(Round(0, 1 << 30, 1 << 30, 10.0, 10.0, left=40_000_000))
    assert not convergence.should_switch_over(LINK)
    assert convergence.expected_downtime(LINK) == pytest.approx(0.4)
    assert convergence.dirty_rate == pytest.approx(4e6)
    convergence.round_done(Round(1, 40_000_000, 40_000_000, 0.4, 0.4, left=1_600_000))
    assert convergence.should_switch_over(LINK)
    assert convergence.expected_downtime(LINK) == pytest.approx(0.016)


def test_nothing_left_always_fits() -> None:
    """Broken: a guest that writes nothing could not be stopped with a downtime limit of 0."""
    convergence = Convergence(1 << 30, downtime_limit=0)
    convergence.round_done(Round(0, 1 << 30, 1 << 30, 10.0, 10.0, left=0))
    assert convergence.should_switch_over(LINK)


def test_limit_holds_for_all_rounds_but_the_last() -> None:
    """Broken: a limited migration would go on although the link carries the rest at once, or the
    forecast would be that of a limit that is lifted."""
    convergence = known(50e6)
    assert convergence.expected_sent == pytest.approx(125e6)
    assert convergence.remaining_seconds(LINK, 1e9) == pytest.approx(0.125)
    assert not convergence.should_switch_over(LINK)
    assert convergence.should_switch_over(1e9)
    assert convergence.expected_downtime(1e9) == pytest.approx(0.125)
    # One more round at the limit, 1.25 s, and then half as much at once.
    assert convergence.remaining_seconds(LINK, 300e6) == pytest.approx(1.25 + 62.5 / 300)


@given(st.floats(0, 99e6), st.floats(1e5, 1e9), st.floats(1, 100), st.floats(0, 5))
def test_faster_last_round_never_takes_longer(
    rate: float, link: float, faster: float, scan: float
) -> None:
    """Broken: a user who says that the link bears more would be told of a later end."""
    convergence = known(rate, 0.3, scan)
    slow = convergence.remaining_seconds(link, link)
    fast = convergence.remaining_seconds(link, link * faster)
    assert slow is None or (fast is not None and fast <= slow * (1 + 1e-9))
    assert convergence.should_switch_over(link) <= convergence.should_switch_over(link * faster)
    assert convergence.expected_downtime(link * faster) <= convergence.expected_downtime(link)
