"""Keep the channels in step with the main channel: nothing of a round overtakes the one before.

At each sync point of the main channel its reader waits until every channel has reached its SYNC,
and a channel waits there until the main channel's reader lets it go on. So whatever is before
the point, in any channel, is in guest memory before anything behind it is.

    channel:   ... pages, SYNC -> reached ............ go -> pages ...
    main:      ... records, sync point: all reached -> go

The sync points of the main channel are its MULTIFD_FLUSH records, one of which is in the first
piece of `ram`, or, where there are none, the ends of the pieces of `ram`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ...protocol import events
from ...protocol.errors import StreamError
from ...protocol.wire.multifd import Compression
from ...transport.counters import Counters
from ...transport.shared import Readiness, SharedFd

CHANNEL_COUNTERS = (
    "bytes",
    "normal",
    "duplicate",
    "syncs",
    "compression",
    "ended",
)
"""Counters of a channel: bytes, pages and sync points that arrived.

`compression` is the kind plus 1, or 0 while it is not known; `ended` is 1 once the channel ended.
"""


@dataclass(frozen=True)
class Signals:
    """The eventfds by which the channels and the main channel's reader signal each other.

    `reached`: 1 more for each channel that has reached a SYNC; `ended`: a channel has ended;
    `finish`: the main channel has ended; `drained`: 1 more for each channel that has, too.
    """

    reached: SharedFd
    ended: SharedFd
    finish: SharedFd
    drained: SharedFd

    @classmethod
    def create(cls) -> Signals:
        """Return signals that nobody has given."""
        event = SharedFd.event
        return cls(event(semaphore=True), event(), event(), event(semaphore=True))

    def close(self) -> None:
        """Close this process's descriptors."""
        for shared in (self.reached, self.ended, self.finish, self.drained):
            shared.close()


@dataclass(frozen=True)
class Steps:
    """The signals and counters of all channels, as the main channel's reader sees them."""

    signals: Signals
    go: tuple[SharedFd, ...]
    counters: tuple[Counters, ...]

    @classmethod
    def create(cls, count: int) -> Steps:
        """Return the shared parts for this number of channels."""
        go = tuple(SharedFd.event(semaphore=True) for _ in range(count))
        counters = tuple(Counters.create(CHANNEL_COUNTERS) for _ in range(count))
        return cls(Signals.create(), go, counters)

    def total(self, name: str) -> int:
        """Return a counter, summed over the channels."""
        return sum(counters[name] for counters in self.counters)

    def close(self) -> None:
        """Release everything shared; the counters stay readable in this process."""
        self.signals.close()
        for go in self.go:
            go.close()
        for counters in self.counters:
            counters.close()


class ChannelSteps:
    """The steps of one channel, in its own process."""

    def __init__(
        self, connection: Connection, signals: Signals, go: SharedFd, counters: Counters
    ) -> None:
        self._command_fd = connection.fileno()
        self._signals = signals
        self._go = go.fileno()
        self._counters = counters
        self._finish = Readiness(signals.finish.fileno())
        self._released = Readiness(self._go)
        self._onward = Readiness(self._command_fd, self._go, signals.finish.fileno())
        self._over = Readiness(self._command_fd, signals.finish.fileno())

    @property
    def finished(self) -> bool:
        """Return whether the main channel has ended, so that nothing of weight may follow here."""
        return self._finish.now()

    def pass_sync(self) -> bool:
        """Wait at a SYNC until the main channel is there, too; return False if it has ended before.

        Raises EOFError when the coordinator is gone.
        """
        self._counters.add("syncs", 1)
        os.eventfd_write(self._signals.reached.fileno(), 1)
        if self._command_fd in self._onward.ready():
            raise EOFError
        # Looked at again: a poll may see `finish`, which is later, and have missed `go`.
        if not self._released.now():
            return False
        os.eventfd_read(self._go)
        return True

    def end(self) -> None:
        """Note the end of the channel, and wait for that of the main one.

        Raises EOFError when the coordinator is gone.
        """
        self._counters.set("ended", 1)
        os.eventfd_write(self._signals.ended.fileno(), 1)
        if self._command_fd in self._over.ready():
            raise EOFError

    def drained(self) -> None:
        """Signal that the channel has ended where the main channel did."""
        os.eventfd_write(self._signals.drained.fileno(), 1)


class SyncPoints:
    """The sync points of the main channel, where its reader meets the channels.

    `barrier` waits until the pages that were delivered are in guest memory.
    """

    def __init__(self, connection: Connection, steps: Steps, barrier: Callable[[], None]) -> None:
        self._command_fd = connection.fileno()
        self._steps = steps
        self._signals = steps.signals
        self._barrier = barrier
        self._in_first_piece = False
        self._at_flush = False
        self._met = 0

    def deliver(
        self, found: list[events.Event], deliver: Callable[[list[events.Event]], None]
    ) -> None:
        """Have the events delivered, those behind a sync point after all channels have reached it.

        Raises StreamError if a channel has ended before it, and EOFError when the coordinator is
        gone.
        """
        first = 0
        for index, event in enumerate(found):
            if self._is_point(event):
                deliver(found[first : index + 1])
                first = index + 1
                self._meet()
        deliver(found[first:])

    def _is_point(self, event: events.Event) -> bool:
        if isinstance(event, events.RamBlocks):
            self._in_first_piece = True
        elif isinstance(event, events.MultifdFlush):
            self._at_flush |= self._in_first_piece
            return True
        elif isinstance(event, events.EndOfRam):
            self._in_first_piece = False
            return not self._at_flush
        return False

    def _meet(self) -> None:
        self._barrier()
        self._check_ended()
        self._wait_for_all(self._signals.reached)
        self._check_compression()
        for go in self._steps.go:
            os.eventfd_write(go.fileno(), 1)
        self._met += 1

    def finish(self) -> None:
        """Have every channel end, after the end of the main channel. Raises as `deliver` does."""
        os.eventfd_write(self._signals.finish.fileno(), 1)
        self._wait_for_all(self._signals.drained)

    def _wait_for_all(self, signal: SharedFd) -> None:
        """Take the signal of each channel."""
        fds = [self._command_fd, signal.fileno()]
        if signal is self._signals.reached:
            fds.append(self._signals.ended.fileno())
        readiness, left = Readiness(*fds), len(self._steps.go)
        while left:
            ready = readiness.ready()
            if self._command_fd in ready:
                raise EOFError
            if signal.fileno() in ready:
                os.eventfd_read(signal.fileno())
                left -= 1
            else:
                os.eventfd_read(self._signals.ended.fileno())
                self._check_ended()

    def _check_ended(self) -> None:
        """Raise StreamError if a channel that has ended did not reach the sync point."""
        for channel, counters in enumerate(self._steps.counters):
            if counters["ended"] and counters["syncs"] <= self._met:
                point = f"sync point {self._met} of the main channel"
                raise self._error(channel, f"the channel ended before {point}")

    def _check_compression(self) -> None:
        """Raise StreamError unless all channels are compressed alike, as far as is known."""
        kinds = {
            counters["compression"]: channel
            for channel, counters in enumerate(self._steps.counters)
            if counters["compression"]
        }
        if len(kinds) > 1:
            (one, first), (other, second), *_ = kinds.items()
            names = [Compression(kind - 1).name.lower() for kind in (one, other)]
            raise self._error(second, f"compressed by {names[1]}, channel {first} by {names[0]}")

    def _error(self, channel: int, message: str) -> StreamError:
        offset = self._steps.counters[channel]["bytes"]
        return StreamError(message, offset=offset, section=f"multifd channel {channel}")
