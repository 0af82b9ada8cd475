"""Whole migrations between a sender and a receiver in real processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from vmferry.guest.errors import MigrationCancelledError, MigrationError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol.states import MigrationStatus
from vmferry.sender.coordinator import Sender
from vmferry.sender.figures import Figures, XbzrleFigures
from vmferry.sender.parameters import SendParameters

from tests.patience import wait_until
from tests.sender.incoming import Incoming


@pytest.fixture
def incoming(tmp_path: Path) -> Iterator[Incoming]:
    with Incoming(f"unix:{tmp_path}/migrate.sock") as side:
        yield side


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_busy_guest_arrives_whole(workers: int) -> None:
    """Broken: law 1 or 3, or rounds overtake each other; a page would be torn, stale or lost."""
    # A guest that gets its time writes for several rounds at this rate.
    parameters = SendParameters(workers=workers, max_bandwidth=120 << 20, downtime_limit=0.01)
    guest = SyntheticGuest.parse("32M,dirty-rate=60M,hot=8M")
    with Incoming(workers=workers) as side, closing(guest) as source:
        figures = Sender(source, side.address, parameters).run()
        side.arrives(source)
        assert figures.status is MigrationStatus.COMPLETED
        assert figures.dirty_sync_count >= 2
        assert not source.running
        before = side.guest.counter()
        side.guest.resume()
        wait_until(lambda: side.guest.counter() > before)
        side.guest.pause()
        assert side.guest.verify() == []


@pytest.mark.parametrize(("workers", "pattern"), [(0, "sparse"), (2, "sparse"), (1, "text")])
def test_busy_guest_arrives_whole_as_differences(workers: int, pattern: str) -> None:
    """Broken: a difference to bytes that the destination does not have (law 2)."""
    parameters = SendParameters(
        max_bandwidth=30 << 20, downtime_limit=0.0001, workers=workers, xbzrle=True
    )
    guest = SyntheticGuest.parse(f"32M,dirty-rate=60M,hot=8M,pattern={pattern}")
    with Incoming(workers=workers) as side, closing(guest) as source:
        sender = Sender(source, side.address, parameters)

        seen: dict[int, XbzrleFigures] = {}

        def steer(figures: Figures) -> None:
            if figures.xbzrle is not None:
                seen[figures.dirty_sync_count] = figures.xbzrle
            if figures.dirty_sync_count >= 1:
                sender.limits.set_xbzrle_cache_size(4 << 20)
            if figures.dirty_sync_count >= 6:
                sender.limits.set_max_bandwidth(0)

        figures = sender.run(steer)
        side.arrives(source)
    assert figures.xbzrle is not None
    assert figures.xbzrle.pages > 500
    assert figures.xbzrle.cache_size == 4 << 20
    if pattern == "sparse":
        # Each 16th write leaves zeros, from which pages become whole again, at times in one round.
        rounds = pairwise([*seen.values(), figures.xbzrle])
        sent = [(now.bytes - old.bytes, now.pages - old.pages) for old, now in rounds]
        assert any(0 < size < pages * 4096 / 3 for size, pages in sent), sent
    assert figures.as_qmp()["xbzrle-cache"]["cache-miss"] >= 2048


def test_cancel_leaves_the_source_running(incoming: Incoming) -> None:
    """Broken (law 5): a cancelled migration would stop the guest, or start the destination."""
    with closing(SyntheticGuest.parse("64M,dirty-rate=20M")) as source:
        sender = Sender(source, incoming.address, SendParameters(max_bandwidth=20 << 20))
        with pytest.raises(MigrationCancelledError):
            sender.run(lambda figures: sender.cancel() if figures.transferred else None)
        incoming.fails()
        assert sender.states.state is MigrationStatus.CANCELLED
        assert source.running


@pytest.mark.parametrize("name", ["vmferry-worker-0", "vmferry-transport"])
def test_dead_process_fails_the_migration(incoming: Incoming, name: str) -> None:
    """Broken (law 5): a killed worker or transport process would cost the guest."""
    with closing(SyntheticGuest.parse("64M,dirty-rate=20M")) as source:
        sender = Sender(source, incoming.address, SendParameters(max_bandwidth=20 << 20, workers=1))

        def kill(figures: Figures) -> None:
            if figures.transferred:
                for child in sender._crew._children:
                    if child.name == name:
                        child.kill()

        with pytest.raises(MigrationError, match=f"{name} died"):
            sender.run(kill)
        incoming.fails()
        assert sender.states.state is MigrationStatus.FAILED
        assert source.running


def test_blocked_guest_does_not_migrate() -> None:
    """Broken: a guest that cannot be moved would be moved."""
    source = SyntheticGuest.parse("1M")
    source.add_blocker("a device is passed through")
    try:
        with pytest.raises(MigrationError, match="passed through"):
            Sender(source, "tcp:127.0.0.1:1").run()
        assert source.running
    finally:
        source.close()


def test_failed_connection_leaves_nothing_open() -> None:
    """Broken: every failed attempt would leak descriptors in a long-lived process."""
    source = SyntheticGuest.parse("1M")

    def attempt() -> int:
        with pytest.raises(MigrationError, match="refused"):
            Sender(source, "tcp:127.0.0.1:1").run()
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    try:
        first = attempt()
        for _ in range(10):
            last = attempt()
        assert last < first + 10
    finally:
        source.close()
