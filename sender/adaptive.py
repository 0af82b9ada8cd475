"""Which level to compress with: as much as the processors can bear while the link is scarce.

What a slot would take at each level is forecast, from the time to find and compress its pages, and
the time of what is left of them on the link. These go on side by side (see Ring and Pool), so the
longer one counts: the ring is full, the link is slow; it is empty, the processors are. The cheapest
level is taken of those that are about as fast as the best. No clock and no I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

NONE = 0
"""The level at which slots are sent as they are."""
LEVELS = (NONE, 1, 3, 6, 9)
"""From the cheapest on; the second is what is begun with."""

WINDOW = 0.02
"""Seconds, at least, over which slots are looked at together."""
WINDOW_SLOTS = 3
TRUST = 8 << 20
"""Bytes sent from which on a link that looks fast is fast: buffers on the way take some at once."""
AS_GOOD = 1.03
"""A level that takes at most this much of the best one's time will do, if it is cheaper."""
OTHER_LINK = 2.0
"""By which factor a link has to change for what is known of it at other levels to be forgotten."""
STALE = 10.0
"""Seconds until it is forgotten anyway."""
SHARE = 0.03
"""Of the time, at most, may be lost by trying levels that turn out not to help."""
UNEXPLAINED = 1.2
"""What passes beyond this many times what the link takes is not the link's."""
FORGET = 0.9
"""With each sample, what remains of the strain on the processors that was seen once."""
PATIENCE = 1.0
"""Seconds, at least, until what did not help is tried again."""


@dataclass(frozen=True)
class SlotTimes:
    """What one slot took. `raw`, `sent`: bytes before and after compression; times in seconds.

    `work`: finding and laying out pages; `compress`; `passed`: all that went by for it, waiting for
    room in the ring or for the channel included.
    """

    raw: int
    sent: int
    work: float
    compress: float
    passed: float


@dataclass(frozen=True)
class Link:
    """What the transport process knows of the link: bytes sent in all, and seconds a byte of late.

    `limit`: what a byte takes at least, by the bandwidth limit; 0 where there is none.
    """

    total: int
    seconds: float
    limit: float


@dataclass(frozen=True)
class Known:
    """What is known of a level: seconds to compress a byte, and what part of it remains."""

    cost: float
    remains: float


@dataclass(frozen=True)
class Measured:
    """Seconds that a byte took on the wire, at `time`."""

    seconds: float
    time: float


class Pipeline(Protocol):
    """What goes on side by side. All times are seconds a byte, as one of those that work sees it.

    `depth`: slots that may be under way; so many after a change of level say nothing of the link.
    """

    @property
    def depth(self) -> int: ...

    def times(self, work: float, cost: float, wire: float) -> tuple[float, float]:
        """Of a slot: before the link, and on it. The longer one is what it takes."""

    def cost(self, work: float, passed: float) -> float:
        """Of compression, where a slot takes `passed` before the link."""


@dataclass(frozen=True)
class Ring:
    """So many processes find and compress pages; another one sends."""

    processes: int
    depth: int

    def times(self, work: float, cost: float, wire: float) -> tuple[float, float]:
        """See Pipeline."""
        return work + cost, wire * self.processes

    def cost(self, work: float, passed: float) -> float:
        """See Pipeline."""
        return max(0.0, passed - work)


@dataclass(frozen=True)
class Pool:
    """So many threads compress; one process finds pages and sends what comes of them."""

    threads: int
    depth: int

    def times(self, work: float, cost: float, wire: float) -> tuple[float, float]:
        """See Pipeline."""
        return cost / self.threads, work + wire

    def cost(self, work: float, passed: float) -> float:
        """See Pipeline; `work` goes on meanwhile."""
        del work
        return passed * self.threads


class Adaptive:
    """The choice of one process, among `levels`."""

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
        """A level of which a sample would tell whether it helps: see `sampled`."""

    @property
    def level(self) -> int:
        """For the next slot."""
        return self._levels[self._place]

    def sampled(self, raw: int, size: int, seconds: float) -> None:
        """A slot of `raw` bytes became `size` bytes at the level wanted."""
        assert self.wants is not None
        self._sample_at = self._time + max(seconds / SHARE, WINDOW)
        self._known[self.wants] = Known(seconds / raw, size / raw)
        self._strain = 1 + (self._strain - 1) * FORGET
        self.wants = None

    def sent(self, slot: SlotTimes, link: Link) -> None:
        """Take in a slot that went out at the present level."""
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
        """A byte took `passed` seconds in all, at a level that compresses.

        Where that is more than it takes on the link, processors are what is scarce; and where they
        are shared with others, compression costs more than the time that it was seen to take.
        """
        if self.level == NONE:
            return
        cost = self._pipeline.cost(work, passed)
        strain = max(1.0, cost / max(self._known[self.level].cost, 1e-15))
        if passed > self._times(work, self.level)[1] * UNEXPLAINED:
            self._strain = strain
        else:
            # It took so long on the link: in that time it was compressed, too.
            self._strain = min(self._strain, strain)

    def _see_link(self, seconds: float) -> None:
        """A byte takes so long on the wire at the present level."""
        before = self._wire.get(self.level)
        if before is not None:
            change = seconds / max(before.seconds, 1e-15)
            if not 1 / OTHER_LINK <= change <= OTHER_LINK:
                self._wire = {}
        self._wire[self.level] = Measured(seconds, self._time)

    def _choose(self, work: float, raw: int, *, trusted: bool) -> None:
        """The level from now on. `raw`: bytes of the window."""
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
            # A higher level would only cost more; and a lower one was reckoned with.
            return
        if place + 1 < len(self._levels) and self._time >= self._sample_at:
            self.wants = self._levels[place + 1]
        elif place and trusted and self._time >= self._probe_at:
            self._probe(work, raw)

    def _probe(self, work: float, raw: int) -> None:
        """Try the level below: a slow link may be a destination that is slow to decompress."""
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
        """See Pipeline, at this level."""
        measured = self._wire.get(level)
        if measured is None or self._time - measured.time > STALE:
            measured = self._wire[self.level]
        known = self._known[level]
        cost = known.cost * self._strain
        return self._pipeline.times(work, cost, measured.seconds * known.remains)

    def _forecast(self, work: float, level: int) -> float:
        """Seconds that a byte would take in all."""
        return max(self._times(work, level))
