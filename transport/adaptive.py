"""Choose the zstd level that sends pages fastest with the processors and the link at hand.

The time that a slot would take at each level is forecast from two parts: the time to find and
compress its pages, and the time to send the compressed bytes. Both parts run side by side (`Ring`
and `Pool` say how), so the longer one counts. When the ring is full, the link is the bottleneck;
when it is empty, the processors are. Among the levels that are about as fast as the best one, the
cheapest is chosen. This module reads no clock and does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

NONE = 0
"""The level at which slots are sent uncompressed."""
LEVELS = (NONE, 1, 3, 6, 9)
"""The zstd levels to choose from, cheapest first; a migration begins with the second."""

WINDOW = 0.02
"""Shortest time, in seconds, over which slots are measured together."""
WINDOW_SLOTS = 3
TRUST = 8 << 20
"""Bytes that must be sent before a fast link is trusted; buffers on the path absorb some."""
AS_GOOD = 1.03
"""A cheaper level is chosen if its time is at most this many times that of the best level."""
OTHER_LINK = 2.0
"""Factor by which the link must change for its measurements at other levels to be discarded."""
STALE = 10.0
"""Age, in seconds, at which a measurement of the link at another level is discarded."""
SHARE = 0.03
"""Largest part of the time that may be lost by trying levels that turn out not to help."""
UNEXPLAINED = 1.2
"""A slot that takes more than this many times its time on the link is limited by the processors."""
FORGET = 0.9
"""Part of the observed strain on the processors that is kept with each sample."""
PATIENCE = 1.0
"""Shortest time, in seconds, before a lower level that did not help is tried again."""


@dataclass(frozen=True)
class SlotTimes:
    """The measurements of one slot: sizes in bytes, times in seconds.

    `raw` and `sent` are its size before and after compression. `work` is the time to find and lay
    out its pages, `compress` the time to compress them. `passed` is the whole time spent on the
    slot, including the wait for room in the ring or for the channel.
    """

    raw: int
    sent: int
    work: float
    compress: float
    passed: float


@dataclass(frozen=True)
class Link:
    """The speed of the link as the transport process measures it.

    `total` is the number of bytes sent so far, `seconds` the recent time per byte. `limit` is the
    shortest time per byte that the bandwidth limit allows, or 0 without a limit.
    """

    total: int
    seconds: float
    limit: float


@dataclass(frozen=True)
class Known:
    """The measured effect of a level: seconds to compress a byte, and the part that remains."""

    cost: float
    remains: float


@dataclass(frozen=True)
class Measured:
    """A measurement of the link: seconds per byte on the wire, taken at `time`."""

    seconds: float
    time: float


class Pipeline(Protocol):
    """A model of which steps of sending run side by side.

    All times are in seconds per byte, as one process that finds pages sees them. `depth` is the
    number of slots that may be under way; that many slots after a change of level say nothing
    about the link.
    """

    @property
    def depth(self) -> int: ...

    def times(self, work: float, cost: float, wire: float) -> tuple[float, float]:
        """Return the time of a slot before the link and on it; the longer one is the total."""

    def cost(self, work: float, passed: float) -> float:
        """Return the time that compression takes when a slot takes `passed` before the link."""


@dataclass(frozen=True)
class Ring:
    """A pipeline in which several processes find and compress pages and another one sends them."""

    processes: int
    depth: int

    def times(self, work: float, cost: float, wire: float) -> tuple[float, float]:
        """Return the time of a slot before the link and on the link."""
        return work + cost, wire * self.processes

    def cost(self, work: float, passed: float) -> float:
        """Return the time that compression takes when a slot takes `passed` before the link."""
        return max(0.0, passed - work)


@dataclass(frozen=True)
class Pool:
    """A pipeline in which threads compress while one process finds pages and sends the frames."""

    threads: int
    depth: int

    def times(self, work: float, cost: float, wire: float) -> tuple[float, float]:
        """Return the time of a slot before the link and on the link."""
        return cost / self.threads, work + wire

    def cost(self, work: float, passed: float) -> float:
        """Return the time that compression takes; `work` runs meanwhile and does not count."""
        del work
        return passed * self.threads


class Adaptive:
    """The choice of a level, among `levels`, by one process."""

    def __init__(self, pipeline: Pipeline, levels: tuple[int, ...] = LEVELS) -> None:
        self._pipeline = pipeline
        self._levels = levels
        self._place = min(1, len(levels) - 1)
        self._known = {NONE: Known(0.0, 1.0)}
        self._wire: dict[int, Measured] = {}
        self._window: list[SlotTimes] = []
        self._settling = 0
        self._time = 0.0
        self._strain = 1.0
        self._sample_at = 0.0
        self._probe_at = PATIENCE
        self.wants: int | None = None
        """A level for `sampled` to measure, to learn whether it helps; None if there is none."""

    @property
    def level(self) -> int:
        """Return the level for the next slot."""
        return self._levels[self._place]

    def sampled(self, raw: int, size: int, seconds: float) -> None:
        """Record that a slot of `raw` bytes shrank to `size` bytes at the level in `wants`."""
        assert self.wants is not None
        self._sample_at = self._time + max(seconds / SHARE, WINDOW)
        self._known[self.wants] = Known(seconds / raw, size / raw)
        self._strain = 1 + (self._strain - 1) * FORGET
        self.wants = None

    def sent(self, slot: SlotTimes, link: Link) -> None:
        """Record a slot sent at the present level, and choose a new level when it is time."""
        self._time += slot.passed
        self._window.append(slot)
        passed = sum(slot.passed for slot in self._window)
        if len(self._window) < WINDOW_SLOTS or passed < WINDOW:
            return
        raw = sum(slot.raw for slot in self._window)
        work = sum(slot.work for slot in self._window) / raw
        compress = sum(slot.compress for slot in self._window) / raw
        remains = sum(slot.sent for slot in self._window) / raw
        self._settling -= len(self._window)
        self._window = []
        if self.level != NONE:
            self._known[self.level] = Known(compress, remains)
        if self._settling <= 0:
            self._see_link(max(link.seconds, link.limit))
            self._see_cost(work, passed / raw)
            self._choose(work, raw, trusted=link.total >= TRUST)

    def _see_cost(self, work: float, passed: float) -> None:
        """Update the strain on the processors from a byte that took `passed` seconds in all.

        A byte that takes longer than the link needs is limited by the processors. If these are
        shared with others, compression costs more than the time measured for it. At level NONE
        nothing is learned.
        """
        if self.level == NONE:
            return
        cost = self._pipeline.cost(work, passed)
        strain = max(1.0, cost / max(self._known[self.level].cost, 1e-15))
        if passed > self._times(work, self.level)[1] * UNEXPLAINED:
            self._strain = strain
        else:
            # The link was the bottleneck, and compression had all of that time to finish.
            self._strain = min(self._strain, strain)

    def _see_link(self, seconds: float) -> None:
        """Record how many seconds a byte takes on the wire at the present level."""
        before = self._wire.get(self.level)
        if before is not None:
            change = seconds / max(before.seconds, 1e-15)
            if not 1 / OTHER_LINK <= change <= OTHER_LINK:
                self._wire = {}
        self._wire[self.level] = Measured(seconds, self._time)

    def _choose(self, work: float, raw: int, *, trusted: bool) -> None:
        """Choose the level from now on; `raw` is the number of bytes in the window."""
        forecasts = {
            place: self._forecast(work, level)
            for place, level in enumerate(self._levels)
            if level in self._known and (trusted or place >= self._place)
        }
        best = min(forecasts.values())
        place = min(place for place in forecasts if forecasts[place] <= best * AS_GOOD)
        if place != self._place:
            self._move(place)
            return
        before, on_link = self._times(work, self.level)
        if on_link < before:
            # A higher level would only cost more, and the lower ones are among the forecasts.
            return
        if place + 1 < len(self._levels) and self._time >= self._sample_at:
            self.wants = self._levels[place + 1]
        elif place and trusted and self._time >= self._probe_at:
            self._probe(work, raw)

    def _probe(self, work: float, raw: int) -> None:
        """Try the level below: a link may look slow because the destination decompresses slowly."""
        below = self._levels[self._place - 1]
        if below not in self._known:
            return
        slower = self._forecast(work, below) - self._forecast(work, self.level)
        lost = slower * (self._pipeline.depth + WINDOW_SLOTS) * raw / WINDOW_SLOTS
        self._probe_at = self._time + max(lost / SHARE, PATIENCE)
        self._move(self._place - 1)

    def _move(self, place: int) -> None:
        self._place = place
        self._settling = self._pipeline.depth

    def _times(self, work: float, level: int) -> tuple[float, float]:
        """Return the time before the link and on the link, in seconds per byte, at `level`."""
        measured = self._wire.get(level)
        if measured is None or self._time - measured.time > STALE:
            measured = self._wire[self.level]
        known = self._known[level]
        cost = known.cost * self._strain
        return self._pipeline.times(work, cost, measured.seconds * known.remains)

    def _forecast(self, work: float, level: int) -> float:
        """Return the seconds that a byte would take in all at `level`."""
        return max(self._times(work, level))
