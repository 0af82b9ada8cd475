"""The level that `--compress adaptive` comes to, on made-up links, processors and destinations."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.transport.adaptive import (
    LEVELS,
    NONE,
    SHARE,
    Adaptive,
    Link,
    Pipeline,
    Pool,
    Ring,
    SlotTimes,
)

RAW = 2 << 20
DEPTH = 8
PIPELINES = pytest.mark.parametrize("pipeline", [Ring(1, DEPTH), Pool(2, 2)], ids=["ring", "pool"])
GIB = 1 << 30


@dataclass
class World:
    """A link (bytes a second), and what the levels cost (seconds a byte) and leave.

    `decompress`: seconds a byte that the destination takes for what was compressed; `buffers`:
    bytes that are taken at once on the way, before the link is felt. `shared`: how many times
    longer compression takes than it is seen to, for processors that others use, too.
    """

    link: float
    work: float
    costs: dict[int, float]
    remains: dict[int, float]
    pipeline: Pipeline
    decompress: float = 0.0
    buffers: int = 0
    shared: float = 1.0
    time: float = 0.0
    total: int = 0
    _free_at: float = 0.0
    _ring: deque[tuple[float, int, float]] = field(default_factory=deque)
    _under_way: deque[tuple[float, int]] = field(default_factory=deque)
    _threads: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _seconds: float = 0.0

    def wire(self, level: int) -> float:
        """Return seconds that a slot takes on the wire."""
        slow = self.decompress * RAW if level else 0.0
        return max(RAW * self.remains[level] / self.link, slow)

    def steady(self, level: int) -> float:
        """Return seconds that a slot takes if all go at this level."""
        return RAW * max(self.pipeline.times(self.work, self.costs[level], self.wire(level) / RAW))

    def run(self, adaptive: Adaptive, slots: int) -> float:
        """Return the seconds until so many slots were sent, samples included."""
        started = self.time
        for _ in range(slots):
            if (level := adaptive.wants) is not None:
                self.time += RAW * self.costs[level]
                size = round(RAW * self.remains[level])
                adaptive.sampled(RAW, size, RAW * self.costs[level])
            self.time += RAW * self.work
            if isinstance(self.pipeline, Ring):
                self._through_ring(adaptive)
            else:
                self._by_threads(adaptive)
        while self._under_way:
            self._finish_one(adaptive)
        return max(self.time, self._free_at) - started

    def _on_wire(self, level: int) -> float:
        """Return seconds of the next slot, which buffers may take at once."""
        wire = 1e-4 if self.buffers > 0 else self.wire(level)
        self.buffers -= round(RAW * self.remains[level])
        return wire

    def _through_ring(self, adaptive: Adaptive) -> None:
        level = adaptive.level
        started = self.time - RAW * self.work
        self.time += RAW * self.costs[level] * self.shared
        wire = self._on_wire(level)
        if len(self._ring) == DEPTH:
            self.time = max(self.time, self._ring[0][0])
        self._free_at = max(self._free_at, self.time) + wire
        self._ring.append((self._free_at, round(RAW * self.remains[level]), wire))
        while self._ring and self._ring[0][0] <= self.time:
            _, size, wire = self._ring.popleft()
            self.total += size
            self._seconds = wire / size
        self._sent(adaptive, level, self.time - started)

    def _by_threads(self, adaptive: Adaptive) -> None:
        while self._under_way and (adaptive.level == NONE or len(self._under_way) == 4):
            self._finish_one(adaptive)
        level = adaptive.level
        thread = self._threads.index(min(self._threads))
        self._threads[thread] = max(self.time, self._threads[thread])
        self._threads[thread] += RAW * self.costs[level] * self.shared
        self._under_way.append((self._threads[thread], level))
        if self._under_way[0][0] <= self.time:
            self._finish_one(adaptive)

    def _finish_one(self, adaptive: Adaptive) -> None:
        done, level = self._under_way.popleft()
        started, wire = self.time, self._on_wire(level)
        size = round(RAW * self.remains[level])
        self.time = max(self.time, done) + wire
        self.total += size
        self._seconds = wire / size
        if level == adaptive.level:
            self._sent(adaptive, level, RAW * self.work + self.time - started)

    def _sent(self, adaptive: Adaptive, level: int, passed: float) -> None:
        size, compress = round(RAW * self.remains[level]), RAW * self.costs[level]
        slot = SlotTimes(RAW, size, RAW * self.work, compress, passed)
        adaptive.sent(slot, Link(self.total, self._seconds, 0.0))


COSTS = {NONE: 0.0, 1: 1 / (0.5 * GIB), 3: 1 / (0.3 * GIB), 6: 1 / (0.1 * GIB), 9: 1 / (0.05 * GIB)}
REMAINS = {NONE: 1.0, 1: 0.62, 3: 0.55, 6: 0.52, 9: 0.5}


def world(
    link: float, pipeline: Pipeline, remains: dict[int, float] = REMAINS, buffers: int = 0
) -> World:
    return World(link, 1 / (4 * GIB), COSTS, remains, pipeline, buffers=buffers)


@PIPELINES
@pytest.mark.parametrize("link", [10e6, 50e6, 200e6, 500e6, 1e9, 2e9, 5e9])
@pytest.mark.parametrize("buffers", [0, 6 << 20])
def test_as_fast_as_the_better_choice(link: float, buffers: int, pipeline: Pipeline) -> None:
    """Broken: `adaptive` would be slower than what a user who knew the link would choose."""
    here = world(link, pipeline, buffers=buffers)
    taken = here.run(Adaptive(pipeline), 1000)
    best = min(1000 * here.steady(level) for level in (NONE, 1))
    assert taken < 1.1 * best


@PIPELINES
def test_a_small_guest_is_soon_gone(pipeline: Pipeline) -> None:
    """Broken: buffers on the way would make a slow link look fast until all is in the ring."""
    here = world(50e6, pipeline, buffers=6 << 20)
    taken = here.run(Adaptive(pipeline), 16)
    assert taken < 1.1 * world(50e6, pipeline, buffers=6 << 20).run(Adaptive(pipeline, (1,)), 16)


@PIPELINES
def test_slow_link_goes_beyond_the_first_level(pipeline: Pipeline) -> None:
    """Broken: processors would idle while the link could be spared."""
    adaptive, here = Adaptive(pipeline), world(10e6, pipeline)
    here.run(adaptive, 300)
    assert adaptive.level > 1
    assert here.steady(adaptive.level) < 1.1 * min(map(here.steady, LEVELS))


@PIPELINES
@pytest.mark.parametrize("link", [50e6, 2e9])
def test_what_does_not_compress_is_not_compressed(link: float, pipeline: Pipeline) -> None:
    """Broken: encrypted memory would cost processors for nothing."""
    adaptive = Adaptive(pipeline)
    world(link, pipeline, dict.fromkeys(LEVELS, 1.0)).run(adaptive, 300)
    assert adaptive.level == NONE


@PIPELINES
def test_follows_a_link_that_changes(pipeline: Pipeline) -> None:
    """Broken: what was right at first would be kept for ever."""
    adaptive, here = Adaptive(pipeline), world(2e9, pipeline)
    here.run(adaptive, 300)
    fast = adaptive.level
    here.link = 20e6
    here.run(adaptive, 300)
    slow = adaptive.level
    here.link = 5e9
    here.run(adaptive, 300)
    assert (fast, adaptive.level) == (NONE, NONE)
    assert slow > 1


@PIPELINES
def test_gives_up_what_the_destination_cannot_bear(pipeline: Pipeline) -> None:
    """Broken: where the destination is slow to decompress, compression would slow it down more."""
    adaptive, here = Adaptive(pipeline), world(300e6, pipeline)
    here.decompress = 1 / 100e6
    taken = here.run(adaptive, 4000)
    assert taken < 1.15 * 4000 * here.steady(NONE)


@PIPELINES
def test_processors_that_others_use(pipeline: Pipeline) -> None:
    """Broken: on a busy machine compression would be thought cheap, and slow the link down."""
    here = world(500e6, pipeline)
    here.shared = 4.0
    taken = here.run(Adaptive(pipeline), 1000)
    assert taken < 1.15 * 1000 * here.steady(NONE)


@PIPELINES
def test_samples_take_little_time(pipeline: Pipeline) -> None:
    """Broken: samples of a level that never helps would take the processor."""
    here = world(400e6, pipeline, {NONE: 1.0, 1: 1.0, 3: 1.0, 6: 1.0, 9: 1.0})
    taken = here.run(Adaptive(pipeline), 3000)
    assert taken < (1 + 2 * SHARE) * 3000 * here.steady(NONE)


@PIPELINES
def test_looking_below_takes_little_time(pipeline: Pipeline) -> None:
    """Broken: a slow link would be given slots as they are again and again, only to see."""
    here = world(50e6, pipeline)
    taken = here.run(Adaptive(pipeline, (NONE, 1)), 1000)
    assert taken < (1 + 2 * SHARE) * 1000 * here.steady(1)


@PIPELINES
def test_one_level_stays(pipeline: Pipeline) -> None:
    """Broken: `zstd:3` would be another level after a while."""
    adaptive, here = Adaptive(pipeline, (3,)), world(10e6, pipeline)
    for _ in range(100):
        assert adaptive.level == 3
        assert adaptive.wants is None
        here.run(adaptive, 1)


def test_a_known_limit_counts_at_once() -> None:
    """Broken: the limit's first free window would make the link look fast."""
    adaptive = Adaptive(Ring(1, DEPTH))
    for _ in range(20):
        adaptive.sent(SlotTimes(RAW, RAW // 2, 0.001, 0.02, 0.021), Link(1 << 30, 1e-10, 1 / 50e6))
    assert adaptive.level == 1


@given(
    st.floats(1e6, 1e11),
    st.lists(st.floats(1e-11, 1e-6), min_size=4, max_size=4),
    st.lists(st.floats(0.01, 1.2), min_size=4, max_size=4),
    st.sampled_from([Ring(1, DEPTH), Pool(2, 2)]),
)
def test_never_far_from_no_compression(
    link: float, costs: list[float], remains: list[float], pipeline: Pipeline
) -> None:
    """Broken: on some machine and link, `adaptive` would be much worse than nothing at all."""
    here = World(
        link,
        1 / (4 * GIB),
        dict(zip(LEVELS, (0.0, *sorted(costs)), strict=True)),
        dict(zip(LEVELS, (1.0, *remains), strict=True)),
        pipeline,
    )
    adaptive = Adaptive(pipeline)
    # Until it trusts the link it goes at the first level, and a level is known when it was tried.
    here.run(adaptive, 3000)
    tried = sum(RAW * cost for cost in here.costs.values())
    assert here.run(adaptive, 600) < 1.1 * 600 * here.steady(NONE) + tried
