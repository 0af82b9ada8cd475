"""Put blocks into zstd frames: as they are, or compressed by a pool of threads.

zstd works without Python's global lock, so the threads run beside the event loop. Blocks leave in
the order in which they were read.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..protocol.formats.link import Data, build_record
from ..protocol.formats.stored_frames import stored
from ..transport.adaptive import NONE, Adaptive, Link, Pool, SlotTimes
from ..transport.compression import Compression, Framer
from .blocks import Block, Buffers, Raw

DEPTH = 2
"""Blocks under way for each thread, so that it finds the next one when it ends one."""


@dataclass(frozen=True)
class Made:
    """A block with its frame, made of `raw` at `level`, and the seconds that compression took.

    `sample`: the size at another level, and the seconds for that, if one was tried.
    """

    block: Block
    raw: Raw
    level: int
    spent: float
    sample: tuple[int, float] | None = None


class Packer:
    """The frames of one relay; blocks are put in and taken out in order.

    `on_ready` is called when a block may be taken.
    """

    def __init__(
        self,
        compression: Compression | None,
        threads: int,
        buffers: Buffers,
        on_ready: Callable[[], None],
    ) -> None:
        levels = (NONE,) if compression is None else compression.levels
        self._adaptive = Adaptive(Pool(threads, DEPTH * threads), levels)
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._framers = threading.local()
        self._buffers = buffers
        self._on_ready = on_ready
        self._under_way: deque[asyncio.Future[Made]] = deque()
        self._sampling = False
        self._since = time.perf_counter()

    @property
    def level(self) -> int:
        """Return the zstd level of the next block; 0: it is stored."""
        return self._adaptive.level

    @property
    def idle(self) -> bool:
        """Return whether no block is under way."""
        return not self._under_way

    @property
    def has_room(self) -> bool:
        """Return whether another block may be put in."""
        most = 1 if self.level == NONE else DEPTH * self._threads
        return len(self._under_way) < most

    def put(self, raw: Raw) -> None:
        """Begin to make the frame of a block."""
        loop = asyncio.get_running_loop()
        sample = None if self._sampling else self._adaptive.wants
        made: asyncio.Future[Made]
        if self.level == NONE and sample is None:
            made = loop.create_future()
            made.set_result(Made(_stored(raw), raw, NONE, 0.0))
        else:
            self._sampling = self._sampling or sample is not None
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, "vmferry-relay")
            made = loop.run_in_executor(self._pool, self._make, raw, self.level, sample)
            made.add_done_callback(lambda _: self._on_ready())
        self._under_way.append(made)

    def take(self) -> Made | None:
        """Return the next block if its frame is ready."""
        if not self._under_way or not self._under_way[0].done():
            return None
        made = self._under_way.popleft().result()
        if made.block.buffer is None and made.level != NONE:
            self._buffers.give(made.raw.buffer)
        if made.sample is not None:
            self._sampling = False
            self._adaptive.sampled(made.block.length, *made.sample)
        return made

    def sent(self, made: Made, link: Link) -> None:
        """Record that a block was sent; an adaptive level follows the link and the processors."""
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        if made.level == self.level:
            size = sum(map(len, made.block.pieces))
            times = SlotTimes(made.block.length, size, made.raw.work, made.spent, passed)
            self._adaptive.sent(times, link)

    def _make(self, raw: Raw, level: int, sample: int | None) -> Made:
        """Make the frame of a block; runs in a thread of the pool."""
        if not hasattr(self._framers, "framer"):
            self._framers.framer = Framer(checksum=True)
        framer: Framer = self._framers.framer
        tried = None
        if sample is not None:
            started = time.perf_counter()
            size = len(framer.frame(raw.content, sample))
            tried = (size, time.perf_counter() - started)
        if level == NONE:
            return Made(_stored(raw), raw, level, 0.0, tried)
        started = time.perf_counter()
        frame = framer.frame(raw.content, level)
        spent = time.perf_counter() - started
        return Made(_block(raw, [memoryview(frame)]), raw, level, spent, tried)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _stored(raw: Raw) -> Block:
    block = _block(raw, stored(raw.content, checksum=True))
    block.buffer = raw.buffer
    return block


def _block(raw: Raw, frame: list[memoryview]) -> Block:
    record = Data(raw.channel, raw.position, raw.length, sum(map(len, frame)))
    pieces = [memoryview(build_record(record)), *frame]
    return Block(raw.channel, raw.position, raw.length, pieces)
