"""The level that `--compress adaptive` comes to, on made-up links and processors."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.sender.adaptive import LEVELS, MAX_PATIENCE, NONE, Adaptive, SlotTimes

RAW = 2 << 20
OVERLAPS = pytest.mark.parametrize("overlap", [True, False])


@dataclass
class World:
    """A link (bytes a second), and what the levels cost (seconds a byte) and leave.

    `late`: slots that the ring takes before the first has to wait.
    """

    link: float
    work: float
    costs: dict[int, float]
    remains: dict[int, float]
    overlap: bool
    late: int = 8

    def slot(self, level: int) -> SlotTimes:
        """What a slot takes at this level once the ring has filled, or emptied."""
        work, compress = RAW * self.work, RAW * self.costs[level]
        wire = RAW * self.remains[level] / self.link
        waited = max(0.0, wire - work - compress) if self.overlap else wire
        return SlotTimes(RAW, round(RAW * self.remains[level]), work, compress, waited)

    def seconds(self, level: int) -> float:
        """All that a slot takes."""
        slot = self.slot(level)
        return slot.work + slot.compress + slot.waited

    def run(self, adaptive: Adaptive, slots: int) -> float:
        """Seconds that so many slots take, samples included."""
        total = 0.0
        for _ in range(slots):
            if (level := adaptive.wants) is not None:
                size = round(RAW * self.remains[level])
                adaptive.sampled(RAW, size, RAW * self.costs[level])
                total += RAW * self.costs[level]
            slot = self.slot(adaptive.level)
            if self.overlap and self.late:
                self.late -= 1
                slot = SlotTimes(slot.raw, slot.sent, slot.work, slot.compress, 0.0)
            total += slot.work + slot.compress + slot.waited
            adaptive.sent(slot)
        return total


GIB = 1 << 30
COSTS = {NONE: 0.0, 1: 1 / (0.5 * GIB), 3: 1 / (0.3 * GIB), 6: 1 / (0.1 * GIB), 9: 1 / (0.05 * GIB)}
REMAINS = {NONE: 1.0, 1: 0.62, 3: 0.55, 6: 0.52, 9: 0.5}


def world(link: float, overlap: bool, remains: dict[int, float] = REMAINS) -> World:
    return World(link, 1 / (4 * GIB), COSTS, remains, overlap)


@OVERLAPS
@pytest.mark.parametrize("link", [10e6, 50e6, 200e6, 500e6, 1e9, 2e9, 5e9])
def test_as_fast_as_the_better_choice(link: float, overlap: bool) -> None:
    """Broken: `adaptive` would be slower than what a user who knew the link would choose."""
    here = world(link, overlap)
    taken = here.run(Adaptive(overlap=overlap), 1000)
    best = min(1000 * here.seconds(level) for level in (NONE, 1))
    assert taken < 1.1 * best


@OVERLAPS
def test_slow_link_goes_beyond_the_first_level(overlap: bool) -> None:
    """Broken: processors would idle while the link could be spared."""
    adaptive, here = Adaptive(overlap=overlap), world(10e6, overlap)
    here.run(adaptive, 300)
    assert adaptive.level > 1
    assert here.seconds(adaptive.level) < 1.1 * min(map(here.seconds, LEVELS))


@OVERLAPS
def test_what_does_not_compress_is_not_compressed(overlap: bool) -> None:
    """Broken: encrypted memory would cost processors for nothing, on any link that keeps up."""
    adaptive = Adaptive(overlap=overlap)
    world(2e9, overlap, dict.fromkeys(LEVELS, 1.0)).run(adaptive, 300)
    assert adaptive.level == NONE


@OVERLAPS
def test_follows_a_link_that_changes(overlap: bool) -> None:
    """Broken: what was right at first would be kept for ever."""
    adaptive = Adaptive(overlap=overlap)
    world(2e9, overlap).run(adaptive, 300)
    fast = adaptive.level
    world(20e6, overlap).run(adaptive, 300)
    slow = adaptive.level
    world(5e9, overlap).run(adaptive, 300)
    assert (fast, adaptive.level) == (NONE, NONE)
    assert slow > 1


def test_gives_up_a_level_that_disappoints() -> None:
    """Broken: where the destination cannot keep up, compression would only slow it down more."""
    adaptive = Adaptive(overlap=True)
    steps = []
    for _ in range(2000):
        if adaptive.wants is not None:
            # Promising, as far as can be seen from here.
            adaptive.sampled(RAW, RAW // 4, 0.001)
        steps.append(adaptive.level)
        # The link waits for a destination that is busy decompressing.
        waited = 0.02 if adaptive.level == NONE else 0.05
        adaptive.sent(
            SlotTimes(RAW, RAW // (1 if adaptive.level == NONE else 4), 0.001, 0.0, waited)
        )
    assert steps[-1] == NONE
    assert steps[100:].count(NONE) > 0.8 * len(steps[100:])


def test_looks_again_less_and_less() -> None:
    """Broken: samples of a level that never helps would take the processor."""
    adaptive, samples = Adaptive(overlap=True), 0
    for _ in range(3000):
        if adaptive.wants is not None:
            samples += 1
            adaptive.sampled(RAW, RAW, 0.01)
        adaptive.sent(SlotTimes(RAW, RAW, 0.001, 0.0, 0.05))
    assert 3 < samples < 2 * 3000 * 0.05 / MAX_PATIENCE


def test_one_level_stays() -> None:
    """Broken: `zstd:3` would be another level after a while."""
    adaptive = Adaptive((3,), overlap=True)
    here = world(10e6, True)
    for _ in range(100):
        assert adaptive.level == 3
        assert adaptive.wants is None
        adaptive.sent(here.slot(3))


@given(
    st.floats(1e6, 1e11),
    st.lists(st.floats(1e-11, 1e-6), min_size=4, max_size=4),
    st.lists(st.floats(0.01, 1.2), min_size=4, max_size=4),
    st.booleans(),
)
def test_never_far_from_no_compression(
    link: float, costs: list[float], remains: list[float], overlap: bool
) -> None:
    """Broken: on some machine and link, `adaptive` would be much worse than nothing at all."""
    here = World(
        link,
        1 / (4 * GIB),
        dict(zip(LEVELS, (0.0, *sorted(costs)), strict=True)),
        dict(zip(LEVELS, (1.0, *remains), strict=True)),
        overlap,
        late=0,
    )
    adaptive = Adaptive(overlap=overlap)
    # The first window is at the first level, and a level is known when it was tried once.
    here.run(adaptive, 30)
    tried = sum(RAW * cost for cost in here.costs.values())
    assert here.run(adaptive, 600) < 1.25 * 600 * here.seconds(NONE) + here.seconds(1) * 10 + tried
