"""Which level to compress with: as much as the processors can bear while the link is scarce.

Where slots wait to be sent (the ring is full), the link is slow; where they never do, the
processors are. From the time that went into each slot, the time that the levels beside the present
one would take is forecast, and the level changes when one of them would be faster. No clock and no
I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass

NONE = 0
"""The level at which slots are sent as they are."""
LEVELS = (NONE, 1, 3, 6, 9)
"""From the cheapest on; the second is what is begun with."""

WINDOW = 0.05
"""Seconds, at least, over which slots are looked at together."""
WINDOW_SLOTS = 3
WAITING = 0.05
"""Share of the time that slots wait, from which on the link is what is scarce."""
GAIN = 0.95
"""A level must take at most this much of the present time to be chosen."""
LOSS = 1.1
"""A level that takes more than this, where it should have taken less, is given up."""
FORGET = 0.7
"""What a link that was slow is reckoned to have got faster, each window in which it was not."""
MAX_PATIENCE = 3.2
"""Seconds, at most, until a level that did not help is looked at again."""
SAMPLE_SHARE = 0.03
"""Of the time, at most, may go into samples."""


@dataclass(frozen=True)
class SlotTimes:
    """What one slot took. `raw`, `sent`: bytes before and after compression; times in seconds.

    `work`: finding and laying out pages; `compress`; `waited`: for room in the ring, or for the
    channel.
    """

    raw: int
    sent: int
    work: float
    compress: float
    waited: float


@dataclass(frozen=True)
class Known:
    """What is known of a level: seconds to compress a byte, and what part of it remains."""

    cost: float
    remains: float


class Patience:
    """When to try again what did not help: each time after twice as long."""

    def __init__(self) -> None:
        self._seconds = WINDOW
        self._until = 0.0

    def is_over(self, time: float) -> bool:
        """Whether to try."""
        return time >= self._until

    def wait(self, time: float, least: float = 0.0) -> None:
        """It was tried at `time`; not again for `least` seconds."""
        self._until = time + max(self._seconds, least)
        self._seconds = min(2 * self._seconds, MAX_PATIENCE)


class Adaptive:
    """The choice of one process, among `levels`.

    `overlap`: another process sends meanwhile, by way of the ring.
    """

    def __init__(self, levels: tuple[int, ...] = LEVELS, *, overlap: bool) -> None:
        self._levels = levels
        self._overlap = overlap
        self._place = min(1, len(levels) - 1)
        self._known = {NONE: Known(0.0, 1.0)}
        self._window: list[SlotTimes] = []
        self._wire = 0.0
        self._before: tuple[int, float] | None = None
        self._fresh = False
        self._time = 0.0
        self._up = Patience()
        self._down = Patience()
        self.wants: int | None = None
        """A level of which a sample would tell whether it helps: see `sampled`."""

    @property
    def level(self) -> int:
        """For the next slot."""
        return self._levels[self._place]

    def sampled(self, raw: int, size: int, seconds: float) -> None:
        """A slot of `raw` bytes became `size` bytes at the level wanted."""
        assert self.wants is not None
        self._up.wait(self._time, seconds / SAMPLE_SHARE)
        self._known[self.wants] = Known(seconds / raw, size / raw)
        self.wants = None
        self._fresh = True

    def sent(self, slot: SlotTimes) -> None:
        """Take in a slot that went out at the present level."""
        self._window.append(slot)
        times = self._window
        seconds = sum(slot.work + slot.compress + slot.waited for slot in times)
        if len(times) < WINDOW_SLOTS or seconds < WINDOW:
            return
        raw = sum(slot.raw for slot in times)
        sent = sum(slot.sent for slot in times)
        work, compress, waited = (
            sum(getattr(slot, part) for slot in times) / raw
            for part in ("work", "compress", "waited")
        )
        self._window = []
        self._time += seconds
        if self.level != NONE:
            self._known[self.level] = Known(compress, sent / raw)
        scarce = waited > WAITING * (work + compress + waited)
        self._see_link((work + compress + waited, waited), sent / raw, scarce=scarce)
        self._choose(work, work + compress + waited, scarce=scarce)

    def _see_link(self, times: tuple[float, float], remains: float, *, scarce: bool) -> None:
        """Seconds that a byte takes on the wire; while it is not scarce, at most so many."""
        total, waited = times
        if not self._overlap:
            self._wire = waited / remains
        elif scarce:
            self._wire = total / remains
        else:
            self._wire = min(self._wire * FORGET, total / remains)

    def _choose(self, work: float, now: float, *, scarce: bool) -> None:
        """This level, or one beside it; `now`: seconds that a byte takes at this one."""
        before, self._before = self._before, None
        fresh, self._fresh = self._fresh, False
        if before is not None:
            place, limit = before
            if now > limit:
                self._place = place
                return
            if place < self._place:
                self._up = Patience()
        places = [self._place - 1] if self._place else []
        if fresh:
            places.append(self._place + 1)
        forecasts = {place: self._forecast(work, place) for place in places}
        best = min(forecasts, key=forecasts.__getitem__, default=self._place)
        if places and forecasts[best] < now * GAIN:
            self._move(best, now * LOSS)
        elif scarce and self._place and self._down.is_over(self._time):
            # What looks like a slow link may be a destination that is slow to decompress.
            self._down.wait(self._time)
            self._move(self._place - 1, now * GAIN)
        elif scarce and self._place + 1 < len(self._levels) and self._up.is_over(self._time):
            self.wants = self._levels[self._place + 1]

    def _move(self, place: int, limit: float) -> None:
        """Another level, which is given up again if a byte takes more than `limit` seconds."""
        self._before = (self._place, limit)
        self._place = place

    def _forecast(self, work: float, place: int) -> float:
        level = self._known[self._levels[place]]
        own, wire = work + level.cost, self._wire * level.remains
        return max(own, wire) if self._overlap else own + wire
