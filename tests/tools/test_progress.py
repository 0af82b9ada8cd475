"""Test what is shown of a running migration: rates, how much is done, and how long yet."""

from __future__ import annotations

import pytest
from vmferry.protocol.states import MigrationStatus
from vmferry.receiver.figures import Figures as ReceiverFigures
from vmferry.sender.figures import Figures
from vmferry.sender.stall import Stall
from vmferry.tools.client.ctl import Watched
from vmferry.tools.console.progress import Progress
from vmferry.tools.console.rate import SECONDS, Rate

MIB = 1 << 20


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_rate_is_a_mean(clock: Clock) -> None:
    """Broken: bursts would be shown as a rate above the limit, and pauses between them as 0."""
    rate = Rate(clock)
    shown = []
    for tenth in range(1, 100):
        clock.now = tenth / 10
        # A burst of 1 MiB every half second.
        rate.note(tenth // 5 * MIB)
        shown.append(rate.recent)
    settled = [one for one in shown[40:] if one is not None]
    assert len(settled) == len(shown[40:])
    assert all(1.6 * MIB < one < 2.4 * MIB for one in settled)
    assert rate.of_all == pytest.approx(2 * MIB, rel=0.05)


def test_rate_of_too_little_time(clock: Clock) -> None:
    """Broken: the first figures would show a rate of nothing, or of any size."""
    rate = Rate(clock)
    assert (rate.recent, rate.of_all) == (None, None)
    rate.note(0)
    clock.now = 0.01
    rate.note(MIB)
    assert (rate.recent, rate.of_all) == (None, None)


def test_waiting_is_not_counted(clock: Clock) -> None:
    """Broken: a migration would look slow because its destination came late."""
    rate = Rate(clock)
    for clock.now in (0.0, 50.0):
        rate.note(0)
    clock.now = 51.0
    rate.note(MIB)
    assert rate.of_all == MIB
    clock.now = 51.0 + SECONDS
    rate.note(MIB)
    assert rate.recent == 0


def test_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Broken: whoever watches would look for what matters behind what does not."""
    with Progress("sending") as progress:
        progress.update(
            Figures(
                MigrationStatus.ACTIVE,
                total=4 * MIB,
                transferred=2 * MIB,
                remaining=MIB,
                dirty_sync_count=1,
                remaining_time=1500,
            )
        )
    assert capsys.readouterr().err == (
        "sending: active, 75%, 1.5 s to go, 2.0 MiB, round 1, 1.0 MiB left\n"
    )


def test_disks_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Broken: whoever watches would not know that it is the disks that take so long."""
    answer = {
        "status": "active",
        "ram": {"total": MIB, "transferred": 0, "remaining": MIB, "dirty-sync-count": 1},
        "disk": {"total": 3 * MIB, "transferred": MIB, "remaining": 2 * MIB},
    }
    with Progress("migrating") as progress:
        progress.update(Watched.of(answer))
    assert capsys.readouterr().err == (
        "migrating: active, 25%, 1.0 MiB, round 1, 3.0 MiB left, 2.0 MiB of it disks\n"
    )


def test_without_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """Broken: zeros would be shown where nothing is known yet."""
    with Progress("receiving") as progress:
        progress.update(ReceiverFigures(MigrationStatus.SETUP))
    assert capsys.readouterr().err == "receiving: setup\n"


def test_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: on a narrow terminal the bar would shrink to make room for figures."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    figures = Figures(MigrationStatus.ACTIVE, total=4 * MIB, transferred=MIB, remaining=MIB)
    with Progress("sending") as progress:
        progress.update(figures)
    # The last line has codes that show the cursor again.
    bar, details, _ = capsys.readouterr().err.split("\n")
    assert "sending" in bar
    assert "active, 75%" in bar
    assert bar.count("━") > 30
    assert details == "  1.0 MiB, round 0, 1.0 MiB left"


def test_stall_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Broken: the same advice would come again with every fluctuation of the guest."""
    progress = Progress("sending")
    for reason in ("rounds do not shrink: 1", None, "rounds do not shrink: 2"):
        stall = None if reason is None else Stall(reason, ())
        progress.update(Figures(MigrationStatus.ACTIVE, stall=stall))
    told = [line for line in capsys.readouterr().err.splitlines() if "shrink" in line]
    assert told == ["sending: rounds do not shrink: 1"]
