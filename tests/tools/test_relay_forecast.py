"""Test what a relay says of a migration: a forecast, and what would help if it stalls."""

from __future__ import annotations

import pytest
from vmferry.relay.view import StreamView, WatchedRound
from vmferry.tools.console.relay_forecast import RelayForecast

MIB = 1 << 20


def view(*rounds: tuple[int, float]) -> StreamView:
    """Return the view of a guest with 100 MiB of RAM, after rounds of some MiB and seconds each."""
    found = StreamView()
    found.total = 100 * MIB
    found.finished = [
        WatchedRound(number, size * 256, size * MIB, seconds)
        for number, (size, seconds) in enumerate(rounds)
    ]
    found.round = len(rounds)
    return found


def forecast(*rounds: tuple[int, float], limit: int = 0) -> RelayForecast:
    """Return the forecast after these rounds, over a link that compresses 2:1."""
    made = RelayForecast(view(*rounds), limit)
    made.update(2.0, 0.4)
    return made


def test_round_0_says_how_long_it_takes() -> None:
    """Broken: people would not know how long to wait for the longest round of all."""
    now = view()
    now.pages_in_round = 25 * 256
    made = RelayForecast(now, 0)
    assert made.remaining(5.0) == pytest.approx(15.0)
    assert made.downtime is None


def test_rounds_that_shrink_have_an_end() -> None:
    """Broken: a migration that ends soon would look like one that never does."""
    made = forecast((100, 10.0), (40, 4.0), (16, 1.6))
    assert made.stall is None
    assert made.downtime == pytest.approx(0.64, rel=0.1)
    assert 0 < (made.remaining(0.0) or 0) < 5


def test_a_stall_names_what_the_user_of_qemu_can_do() -> None:
    """Broken: people would be told of options that neither QEMU nor the relay has."""
    made = forecast((100, 10.0), *[(50, 5.0)] * 5, limit=5 * MIB)
    assert made.remaining(0.0) is None
    assert made.stall is not None
    assert "each finds 25.0 MiB to send, at 5.0 MiB/s" in made.stall.reason
    assert "the limit is 300 ms if the source has QEMU's default" in made.stall.reason
    first, second, third, last = made.stall.advice
    assert first.startswith("this relay's --max-bandwidth of more than 83.3 MiB/s")
    assert second.startswith("this relay's --compress zstd would cut this traffic to about 40%")
    assert "auto-converge (migrate-set-capabilities)" in third
    assert "downtime-limit (migrate-set-parameters) of 6000 would" in last


def test_a_stall_is_over_when_rounds_shrink() -> None:
    """Broken: advice would stay where nothing is wrong any more."""
    assert forecast((100, 10.0), *[(50, 5.0)] * 5, (10, 1.0)).stall is None
