"""How a migration chooses its tracker, and that each one moves a guest that writes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmferry.guest.errors import MigrationError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.tracking.errors import TrackingError
from vmferry.guest.tracking.marks import WriteMarks
from vmferry.sender.coordinator import Sender
from vmferry.sender.parameters import SendParameters
from vmferry.transport.settings import TrackerKind

from tests.sender.incoming import Incoming


class Unmarked(SyntheticGuest):
    """A guest whose writes the kernel does not mark."""

    def mark_writes(self) -> WriteMarks:
        raise TrackingError("its memory is made of stone")


@pytest.fixture
def source() -> Iterator[SyntheticGuest]:
    guest = SyntheticGuest.parse("8M,dirty-rate=8M,hot=50%")
    yield guest
    guest.close()


@pytest.fixture
def unmarked() -> Iterator[SyntheticGuest]:
    guest = Unmarked.parse("1M,dirty-rate=1M")
    yield guest
    guest.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("tracker", [TrackerKind.USERFAULTFD, TrackerKind.DIGESTS])
def test_guest_that_writes(source: SyntheticGuest, tracker: TrackerKind, workers: int) -> None:
    """Broken (law 1): pages would arrive torn or stale, or would not arrive."""
    side = Incoming("tcp:127.0.0.1:0")
    parameters = SendParameters(tracker=tracker, workers=workers, downtime_limit=0.01)
    try:
        figures = Sender(source, side.address, parameters).run()
        side.join()
        assert side.guest.verify() == []
    finally:
        side.close()
    assert figures.tracker == tracker.value
    assert figures.as_qmp()["tracker"] == tracker.value


def test_best_is_chosen(
    source: SyntheticGuest, unmarked: SyntheticGuest, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken: all memory would be read in each round, and nobody would learn why."""
    for guest, chosen in ((source, "userfaultfd"), (unmarked, "digests")):
        with caplog.at_level(logging.INFO):
            assert Sender(guest, "exec:cat > /dev/null").run().tracker == chosen
        guest.resume()
    assert "digests of all memory, because its memory is made of stone" in caplog.text


def test_forced_tracker_that_cannot_be_had(unmarked: SyntheticGuest, tmp_path: Path) -> None:
    """Broken: it would be found out when the destination is there already, or never."""
    parameters = SendParameters(tracker=TrackerKind.USERFAULTFD)
    with pytest.raises(MigrationError, match="tracked by userfaultfd: its memory is made of"):
        Sender(unmarked, f"file:{tmp_path}/stream", parameters).run()
    assert not (tmp_path / "stream").exists()
    assert unmarked.running


def test_marks_end_with_the_migration(source: SyntheticGuest, tmp_path: Path) -> None:
    """Broken: the guest would pay for marks ever after, and could not migrate by them again."""
    parameters = SendParameters(tracker=TrackerKind.USERFAULTFD)
    for _ in range(2):
        with pytest.raises(MigrationError):
            Sender(source, f"unix:{tmp_path}/nobody", parameters).run()
    assert source.running
    assert Sender(source, "exec:cat > /dev/null", parameters).run().tracker == "userfaultfd"


def test_guest_that_stands_still_is_not_tracked(source: SyntheticGuest) -> None:
    """Broken: a name would be shown of what is not there."""
    source.pause()
    assert Sender(source, "exec:cat > /dev/null").run().tracker is None
