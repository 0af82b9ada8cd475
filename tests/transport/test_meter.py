"""Spans and bandwidth, on a clock of the test's own."""

from __future__ import annotations

from vmferry.transport.meter import Meter


class Clock:
    """Clock in seconds that the test sets by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_span() -> None:
    """Broken: downtime, setup and total time would be wrong."""
    clock = Clock()
    meter = Meter(clock)
    assert meter.milliseconds("total") == 0
    meter.begin("total")
    clock.now += 1.5
    assert meter.milliseconds("total") == 1500
    meter.end("total")
    clock.now += 9
    meter.end("total")
    assert meter.milliseconds("total") == 1500


def test_bandwidth_counts_only_sending() -> None:
    """Broken: slow scanning would look like a slow link, and the downtime forecast be too long."""
    clock = Clock()
    meter = Meter(clock)
    clock.now += 1
    meter.window(1_000_000, 250_000_000)
    assert meter.bandwidth == 4_000_000
    assert meter.mbps == 8


def test_idle_window_keeps_the_bandwidth() -> None:
    """Broken: after a pause of the link the guest would never be switched over."""
    clock = Clock()
    meter = Meter(clock)
    clock.now += 1
    meter.window(1_000_000, 500_000_000)
    clock.now += 1
    meter.window(1_000_000, 500_000_000)
    assert meter.bandwidth == 2_000_000
    assert meter.mbps == 0
