"""Send slots compressed, each as one zstd frame.

`zstd -dc` accepts several frames after one another and restores the stream. At level NONE a slot is
stored in a frame when it is sent, and nothing is copied.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ..transport.adaptive import NONE, Adaptive, SlotTimes
from ..transport.compression import Framer, LinkMeter
from ..transport.counters import Counters
from .sinks import DirectSink, RingSink


class Choice:
    """The choice of a level for each slot; it also updates the counters in COMPRESSION_COUNTERS."""

    def __init__(self, adaptive: Adaptive, counters: Counters, link: LinkMeter) -> None:
        self._adaptive = adaptive
        self._counters = counters
        self._link = link
        self._framer = Framer()

    @property
    def level(self) -> int:
        """Return the level for the next slot."""
        return self._adaptive.level

    def sample(self, content: memoryview) -> None:
        """Compress a slot and discard the frame, if that would show which level is best."""
        level = self._adaptive.wants
        if level is None:
            return
        started = time.perf_counter()
        size = len(self._framer.frame(content, level))
        self._adaptive.sampled(len(content), size, time.perf_counter() - started)

    def sent(self, slot: SlotTimes, level: int) -> None:
        """Record a slot that was sent at this level."""
        self._counters.add("raw_bytes", slot.raw)
        self._counters.add("compressed_bytes", slot.sent)
        if level == self.level:
            self._adaptive.sent(slot, self._link.look())
        self._counters.set("level", self.level)


class FramedRingSink:
    """Ring slots of at most `size` bytes, compressed by the process that fills them."""

    def __init__(self, sink: RingSink, size: int, choice: Choice) -> None:
        self._sink = sink
        self._size = size
        self._choice = choice
        self._framer = Framer()
        self._buffer = memoryview(bytearray(size))
        self._open = self._buffer
        self._level = NONE
        self._waited = 0.0
        self._since = 0.0
        self.end_round = sink.end_round
        self.check = sink.check

    def acquire(self) -> memoryview:
        """Return an empty slot to fill."""
        started = time.perf_counter()
        self._level = self._choice.level
        self._open = self._sink.acquire()[: self._size] if self._level == NONE else self._buffer
        self._since = time.perf_counter()
        self._waited = self._since - started
        return self._open

    def publish(self, length: int) -> None:
        """Compress the first `length` bytes of the slot and send them."""
        work = time.perf_counter() - self._since
        content = self._open[:length]
        self._choice.sample(content)
        started, spent, sent = time.perf_counter(), 0.0, length
        if self._level == NONE:
            self._sink.publish_stored(length)
        else:
            frame = self._framer.frame(content, self._level)
            spent, sent = time.perf_counter() - started, len(frame)
            self._sink.acquire()[:sent] = frame
            self._sink.publish(sent)
        passed = self._waited + work + time.perf_counter() - started
        self._choice.sent(SlotTimes(length, sent, work, spent, passed), self._level)


@dataclass(frozen=True)
class Made:
    """A finished frame and the seconds that it took to compress."""

    frame: bytes
    seconds: float


@dataclass(frozen=True)
class UnderWay:
    """A slot that a thread is compressing.

    It has its buffer, its length in bytes, the seconds of work to fill it, the level, and the
    future frame.
    """

    buffer: memoryview
    length: int
    work: float
    level: int
    made: Future[Made]


class FramedDirectSink:
    """Sink of at most `size` bytes that a pool of threads compresses.

    Meanwhile this process finds more pages and sends finished frames, in order.
    """

    def __init__(self, sink: DirectSink, size: int, choice: Choice, threads: int) -> None:
        self._sink = sink
        self._size = size
        self._choice = choice
        self._pool = ThreadPoolExecutor(threads, "vmferry-deflate")
        self._framers = threading.local()
        self._free = [memoryview(bytearray(size)) for _ in range(2 * threads)]
        self._under_way: deque[UnderWay] = deque()
        self._open = self._free[0]
        self._level = NONE
        self._since = 0.0
        self.check = sink.check

    def acquire(self) -> memoryview:
        """Return an empty slot to fill."""
        while self._under_way and (self._choice.level == NONE or not self._free):
            self._finish_one()
        self._level = self._choice.level
        if self._level == NONE:
            self._open = self._sink.acquire()[: self._size]
        else:
            self._open = self._free.pop()
        self._since = time.perf_counter()
        return self._open

    def publish(self, length: int) -> None:
        """Have the pool compress the first `length` bytes, or send them at once at level NONE."""
        now = time.perf_counter()
        work = now - self._since
        content = self._open[:length]
        self._choice.sample(content)
        if self._level == NONE:
            started = time.perf_counter()
            self._sink.publish_stored(length)
            passed = work + time.perf_counter() - started
            self._choice.sent(SlotTimes(length, length, work, 0.0, passed), NONE)
            return
        made = self._pool.submit(self._make, content, self._level)
        self._under_way.append(UnderWay(self._open, length, work, self._level, made))
        # Only one is sent: to send all finished ones would leave the threads without work.
        if self._under_way[0].made.done():
            self._finish_one()

    def _make(self, content: memoryview, level: int) -> Made:
        """Compress a slot; runs in a thread of the pool."""
        if not hasattr(self._framers, "framer"):
            self._framers.framer = Framer()
        started = time.perf_counter()
        frame = self._framers.framer.frame(content, level)
        return Made(frame, time.perf_counter() - started)

    def _finish_one(self) -> None:
        """Wait for the oldest slot under way and send it."""
        oldest = self._under_way.popleft()
        started = time.perf_counter()
        made = oldest.made.result()
        self._free.append(oldest.buffer)
        self._sink.send(memoryview(made.frame))
        passed = oldest.work + time.perf_counter() - started
        sizes = (oldest.length, len(made.frame))
        self._choice.sent(SlotTimes(*sizes, oldest.work, made.seconds, passed), oldest.level)

    def end_round(self, number: int) -> None:
        """Send all slots under way and end the round."""
        while self._under_way:
            self._finish_one()
        self._sink.end_round(number)
