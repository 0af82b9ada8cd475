"""A migration that does not get on: noticed, explained, and ended as the user wishes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from vmferry.guest.errors import MigrationCancelledError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol.states import MigrationStatus
from vmferry.sender.convergence import Round
from vmferry.sender.coordinator import Sender
from vmferry.sender.figures import Figures
from vmferry.sender.parameters import SendParameters
from vmferry.sender.sampler import SAMPLE_COUNTERS, Sampler
from vmferry.sender.stall import Remedy, Situation, StallDetector, command_line_option, explain
from vmferry.transport.counters import Counters
from vmferry.transport.settings import OnStall, TrackerKind

from tests.patience import wait_until
from tests.sender.incoming import Incoming

MIB = 1 << 20


def detect(*sent: int, seconds: float = 1.0) -> list[bool]:
    """Return whether the migration stalls after each of these rounds."""
    detector, found = StallDetector(), []
    for number, size in enumerate(sent):
        detector.round_done(Round(number, size, size, seconds, seconds))
        found.append(detector.stalled)
    return found


def test_rounds_that_do_not_shrink() -> None:
    """Broken: a migration without an end would go on without a word."""
    assert detect(1000, 100, 100, 99, 101, 100) == [False] * 4 + [True, True]


def test_rounds_that_fluctuate() -> None:
    """Broken: a round that is smaller than a large one would hide for ever that nothing gets on."""
    assert detect(1000, 100, 160, 110, 150, 108, 140) == [False] * 4 + [True] * 3


def test_rounds_that_shrink_after_a_busy_time() -> None:
    """Broken: a guest that was quiet once would count as stalled while its rounds shrink again."""
    assert not any(detect(1000, 10, 800, 700, 400, 200, 100, 50))


def test_rounds_that_shrink_slowly() -> None:
    """Broken: a migration that gets on would be called off."""
    assert not any(detect(*[int(1000 * 0.9**n) for n in range(20)]))


def test_short_rounds_are_no_stall_yet() -> None:
    """Broken: three rounds within a blink would be called a stall."""
    assert detect(*[100] * 10, seconds=0.125).index(True) == 8


def test_gets_on_again() -> None:
    """Broken: what was told would be told of for ever."""
    assert detect(100, 100, 100, 100, 50) == [False, False, False, True, False]


STALLED = Situation(
    bandwidth=20 * MIB,
    left=40 * MIB,
    downtime=2.0,
    downtime_limit=0.3,
    max_bandwidth=0,
    switchover_is_known=True,
    delta=None,
    zstd=None,
    cache_miss_rate=0.0,
    cache_size=0,
    can_slow=False,
)


def advice(**known: object) -> str:
    given = replace(STALLED, **known)  # type: ignore[arg-type]
    return "\n".join(explain(given).explain(command_line_option).advice)


def test_reason_has_the_numbers() -> None:
    """Broken: the user would have to guess what is too slow."""
    reason = explain(STALLED).reason
    for number in ("20.0 MiB/s", "40.0 MiB", "2000 ms", "300 ms"):
        assert number in reason


def test_advice_is_only_what_would_help() -> None:
    """Broken: the user would try in vain what does not help with this link and these pages."""
    assert "--downtime-limit 2400" in advice()
    for option in ("bandwidth", "xbzrle", "compress", "auto-converge"):
        assert option not in advice()
    assert "--max-bandwidth of more than 133.3 MiB/s" in advice(max_bandwidth=20 * MIB)
    assert "--max-bandwidth" not in advice(max_bandwidth=200 * MIB)
    assert "--avail-switchover-bandwidth" not in advice(max_bandwidth=20 * MIB)
    assert "--avail-switchover-bandwidth of more than 133.3 MiB/s" in advice(
        max_bandwidth=20 * MIB, switchover_is_known=False
    )
    assert "--xbzrle would cut this traffic to about 5%" in advice(delta=0.05)
    assert "--xbzrle" not in advice(delta=0.95)
    assert "--compress zstd would cut this traffic to about 60%" in advice(zstd=0.6)
    assert "--compress" not in advice(zstd=1.0)
    assert "--xbzrle-cache-size of more than 64.0 MiB: about 80%" in advice(
        cache_miss_rate=0.8, cache_size=64 * MIB
    )
    assert "--auto-converge" in advice(can_slow=True)


@pytest.fixture
def counters() -> Iterator[Counters]:
    shared = Counters.create(SAMPLE_COUNTERS)
    yield shared
    shared.close()


@pytest.mark.parametrize(
    ("content", "delta", "zstd"), [("sparse", True, False), ("text", False, True)]
)
def test_samples_tell_the_encoding(
    counters: Counters, content: str, delta: bool, zstd: bool
) -> None:
    """Broken: the advice would name an encoding that does not help, or not the one that does."""
    random = np.random.default_rng(1)
    sampler = Sampler(4096, counters)
    numbers = np.arange(500, 700)
    pages = random.integers(0, 256, (200, 4096), np.uint8)
    for _ in range(4):
        if content == "sparse":
            pages[:, 100:104] += 1
        else:
            pages = random.integers(97, 101, (200, 4096), np.uint8)
        sampler.begin_round()
        sampler.sent(numbers, pages)
    sampled = counters["sampled"]
    assert sampled
    assert (counters["sampled_delta"] < sampled / 20) == delta
    assert (counters["sampled_zstd"] < sampled / 2) == zstd


def test_sample_forgets_what_does_not_come_again(counters: Counters) -> None:
    """Broken: pages that were written once would take the places of those that are hot."""
    sampler, pages = Sampler(4096, counters), np.ones((512, 4096), np.uint8)
    for first in range(0, 1 << 20, 512):
        sampler.sent(np.arange(first, first + 512), pages)
    assert counters["sampled"] == 0
    sampler.begin_round()
    sampler.begin_round()
    hot = np.arange(1 << 30, (1 << 30) + 100)
    for _ in range(2):
        sampler.begin_round()
        sampler.sent(hot, pages[:100])
    assert counters["sampled"] > 0


@pytest.fixture
def source() -> Iterator[SyntheticGuest]:
    """Yield a guest that writes a little to each of 1024 pages, more than `slow` can send."""
    guest = SyntheticGuest.parse("8M,dirty-rate=40M,hot=50%,zero=0,pattern=sparse")
    yield guest
    guest.close()


def slow(
    source: SyntheticGuest,
    address: str,
    on_stall: OnStall,
    *,
    max_bandwidth: int = 2 * MIB,
    downtime_limit: float = 0.1,
    avail_switchover_bandwidth: int = 0,
) -> Sender:
    """Make a sender whose rounds begin when the guest has written all its pages again."""
    parameters = SendParameters(
        max_bandwidth=max_bandwidth,
        avail_switchover_bandwidth=avail_switchover_bandwidth,
        downtime_limit=downtime_limit,
        on_stall=on_stall,
        # Rounds are held where they begin; marks would be counted where they end.
        tracker=TrackerKind.DIGESTS,
    )
    sender = Sender(source, address, parameters)

    def hold(_: int) -> None:
        written = source.counter() + 1024
        wait_until(
            lambda: (
                source.counter() >= written
                or not source.running
                or sender.figures().stall is not None
            )
        )

    sender.on_round = hold
    return sender


def test_stall_cancels(source: SyntheticGuest, incoming: Incoming) -> None:
    """Broken: the guest would be paused for longer than allowed, or migrated for ever."""
    sender = slow(source, incoming.address, OnStall.CANCEL)
    told: list[Figures] = []
    with pytest.raises(MigrationCancelledError, match="cancelled: rounds do not shrink"):
        sender.run(told.append)
    incoming.join()
    assert sender.states.state is MigrationStatus.CANCELLED
    assert source.running
    (stall,) = {figures.stall for figures in told} - {None}
    assert stall is not None
    remedies = [advice.remedy for advice in stall.advice]
    # A process without time does not fill the link, and then the limit is not what holds it up.
    assert remedies[: remedies.index(Remedy.XBZRLE)] in (
        [Remedy.MAX_BANDWIDTH, Remedy.AVAIL_SWITCHOVER_BANDWIDTH],
        [],
    )
    assert told[-1].as_qmp()["stall"] == stall.explain(command_line_option).as_json()


def test_stall_switches_over(source: SyntheticGuest, incoming: Incoming) -> None:
    """Broken: who would rather have a longer downtime than none would wait for ever."""
    told: list[Figures] = []
    figures = slow(source, incoming.address, OnStall.SWITCHOVER).run(told.append)
    incoming.arrives(source)
    # Without it, this guest never has so little left that it may be paused.
    stalls = [figures.stall.reason for figures in told if figures.stall is not None]
    assert stalls
    assert "rounds do not shrink" in stalls[0]
    # How much is left then depends on how much time the guest's process gets.
    assert figures.forecast.downtime is not None


def test_stall_goes_on_until_something_changes(source: SyntheticGuest, incoming: Incoming) -> None:
    """Broken: a user who raises the limit after the word of it would not be heeded."""
    sender = slow(source, incoming.address, OnStall.CONTINUE)

    def raise_limit(figures: Figures) -> None:
        if figures.stall is not None:
            sender.limits.set_max_bandwidth(0)

    figures = sender.run(raise_limit)
    incoming.arrives(source)
    assert figures.forecast.total_time is None
    assert figures.forecast.after_round == 2
    assert figures.stall is None


def test_limited_migration_ends_where_the_link_carries_the_rest(
    source: SyntheticGuest, incoming: Incoming
) -> None:
    """Broken: the guest would be sent over and over for a limit that the last round has not."""
    sender = slow(source, incoming.address, OnStall.CANCEL, avail_switchover_bandwidth=1 << 40)
    told: list[Figures] = []
    figures = sender.run(told.append)
    incoming.arrives(source)
    assert {figures.stall for figures in told} == {None}
    assert figures.dirty_sync_count < 5


def test_what_the_link_bore_before_it_was_limited_counts(
    source: SyntheticGuest, incoming: Incoming
) -> None:
    """Broken: what was measured without a limit would be forgotten, and the guest sent on."""
    sender = slow(source, incoming.address, OnStall.CANCEL, max_bandwidth=0, downtime_limit=0)
    hold = sender.on_round

    def limit(number: int) -> None:
        hold(number)
        if number == 3:
            # Less than what the guest has written by now, 4 MiB, unless the link bears more.
            sender.limits.set_max_bandwidth(2 * MIB)
            sender.limits.set_downtime_limit(1.5)

    sender.on_round = limit
    figures = sender.run()
    incoming.arrives(source)
    assert figures.dirty_sync_count < 6
