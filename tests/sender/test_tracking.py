"""Test how a migration chooses its tracker, and that each one moves a guest that writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from vmferry.guest.errors import MigrationError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.synthetic_memory import ROM_SIZE
from vmferry.guest.tracking import process_memory, soft_dirty
from vmferry.guest.tracking.errors import TrackingError
from vmferry.guest.tracking.marks import WriteMarks
from vmferry.guest.tracking.pagemap import MarkReader
from vmferry.guest.tracking.soft_dirty import SoftDirtyBits
from vmferry.guest.tracking.tracker import Mask
from vmferry.sender.coordinator import Sender
from vmferry.sender.parameters import SendParameters
from vmferry.transport.settings import TrackerKind

from tests.sender.incoming import Incoming

ROUNDS = 8
"""Rounds of a migration for which a test makes none the last one before."""


class Unmarked(SyntheticGuest):
    """A guest whose writes the kernel does not mark."""

    def mark_writes(self) -> WriteMarks:
        raise TrackingError("its memory is made of stone")


class ByUserfaultfd(SoftDirtyBits):
    """Soft-dirty bits as a kernel has them: read and removed in two steps, between which time
    passes. They are made of marks of the other kind, which this kernel has.
    """

    def __init__(self, guest: SyntheticGuest) -> None:
        self._marks = guest.mark_writes()
        self._reader = MarkReader(self._marks.pagemap)

    def read(self, address: int, count: int) -> Mask:
        marked = np.zeros(count, np.bool_)
        for runs in self._reader.runs(address, address + count * 4096, rearm=False):
            for start, end in ((runs - np.uint64(address)) // np.uint64(4096)).tolist():
                marked[start:end] = True
        time.sleep(0.01)
        return marked

    def clear(self) -> None:
        for address in self._marks.addresses:
            length = (8 << 20) if address == self._marks.addresses[0] else ROM_SIZE
            for _ in self._reader.runs(address, address + length, rearm=True):
                pass

    def close(self) -> None:
        self._marks.close()


@pytest.fixture
def soft_dirty_kernel(source: SyntheticGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a kernel that has soft-dirty bits, as far as the guest `source` can tell."""
    monkeypatch.setattr(soft_dirty, "kernel_has_soft_dirty", lambda: True)
    monkeypatch.setattr(process_memory, "_swap_is_on", lambda: False)
    monkeypatch.setattr(soft_dirty, "SoftDirtyBits", lambda _: ByUserfaultfd(source))


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
def test_guest_that_writes(
    source: SyntheticGuest, tracker: TrackerKind, workers: int, incoming: Incoming
) -> None:
    """Broken (law 1): pages would arrive torn or stale, or would not arrive."""
    parameters = SendParameters(tracker=tracker, workers=workers, downtime_limit=0.01)
    figures = Sender(source, incoming.address, parameters).run()
    incoming.arrives(source)
    assert figures.tracker == tracker.value
    assert figures.as_qmp()["tracker"] == tracker.value


@pytest.mark.usefixtures("soft_dirty_kernel")
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_guest_that_is_held_for_each_round(
    source: SyntheticGuest, workers: int, incoming: Incoming
) -> None:
    """Broken (law 1): what is written between reading marks and removing them would not arrive."""
    parameters = SendParameters(tracker=TrackerKind.SOFT_DIRTY, workers=workers, downtime_limit=0)
    sender = Sender(source, incoming.address, parameters)
    sender.on_round = lambda number: (
        sender.limits.set_downtime_limit(10) if number == ROUNDS else None
    )
    heard: list[str] = []
    source.add_listener(heard.append)
    figures = sender.run()
    incoming.arrives(source)
    assert figures.tracker == "soft-dirty"
    assert heard == ["stop"]


def test_best_is_chosen(
    source: SyntheticGuest,
    unmarked: SyntheticGuest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken: all memory would be read in each round, and nobody would learn why."""
    monkeypatch.setattr(soft_dirty, "kernel_has_soft_dirty", lambda: False)
    for guest, chosen in ((source, "userfaultfd"), (unmarked, "digests")):
        with caplog.at_level(logging.INFO):
            assert Sender(guest, "exec:cat > /dev/null").run().tracker == chosen
        guest.resume()
    assert "cannot be tracked by userfaultfd: its memory is made of stone" in caplog.text
    assert "cannot be tracked by soft-dirty: this kernel has no soft-dirty bits" in caplog.text
    assert "found by digests of all memory" in caplog.text


def test_forced_tracker_that_cannot_be_had(
    unmarked: SyntheticGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: it would be found out when the destination is there already, or never."""
    monkeypatch.setattr(soft_dirty, "kernel_has_soft_dirty", lambda: False)
    for tracker, reason in (
        (TrackerKind.USERFAULTFD, "tracked by userfaultfd: its memory is made of"),
        (TrackerKind.SOFT_DIRTY, "tracked by soft-dirty: this kernel has no soft-dirty bits"),
    ):
        parameters = SendParameters(tracker=tracker)
        with pytest.raises(MigrationError, match=reason):
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
