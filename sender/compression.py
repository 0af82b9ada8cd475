"""Compression of the outgoing stream: every slot becomes one zstd frame.

Several frames after one another are what `zstd -dc` takes: it gives the stream again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import zstandard

from ..transport.counters import Counters
from .adaptive import LEVELS, NONE, Adaptive, SlotTimes
from .slots import Slots

MAX_LEVEL = zstandard.MAX_COMPRESSION_LEVEL

COMPRESSION_COUNTERS = ("raw_bytes", "compressed_bytes", "level")
"""Of each process that compresses: bytes before and after, and the present level."""


class CompressionError(ValueError):
    """Not a way to compress; one line."""


@dataclass(frozen=True)
class Compression:
    """`level` of zstd; None: adaptive."""

    level: int | None

    def __str__(self) -> str:
        return "adaptive" if self.level is None else f"zstd:{self.level}"


def parse_compression(text: str) -> Compression | None:
    """`none`, `zstd[:LEVEL]` or `adaptive`. Raises CompressionError."""
    method, colon, level = text.partition(":")
    if text in ("none", "adaptive"):
        return None if text == "none" else Compression(None)
    if method != "zstd":
        raise CompressionError(f"{text!r} is none of none, zstd[:LEVEL], adaptive")
    if not colon:
        return Compression(1)
    if not level.isascii() or not level.isdigit() or not 1 <= int(level) <= MAX_LEVEL:
        raise CompressionError(f"{level!r} is no level of zstd: 1 to {MAX_LEVEL}")
    return Compression(int(level))


class Framer:
    """Makes frames, each of which says how much it holds; for one thread."""

    def __init__(self) -> None:
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}

    def frame(self, content: memoryview | bytes, level: int) -> bytes:
        """One zstd frame with this content."""
        if level not in self._compressors:
            self._compressors[level] = zstandard.ZstdCompressor(level, write_content_size=True)
        return self._compressors[level].compress(content)


class CompressedSlots:
    """Slots of at most `size` bytes that leave as frames, by way of the slots below.

    `counters`: COMPRESSION_COUNTERS.
    """

    def __init__(
        self, slots: Slots, size: int, compression: Compression, counters: Counters
    ) -> None:
        self._slots = slots
        self._size = size
        self._buffer = memoryview(bytearray(size))
        self._counters = counters
        self._framer = Framer()
        levels = LEVELS if compression.level is None else (compression.level,)
        self._choice = Adaptive(levels, overlap=slots.overlap)
        self._open = self._buffer
        self._waited = 0.0
        self._since = 0.0
        self.overlap = slots.overlap
        self.end_round = slots.end_round
        self.check = slots.check

    def acquire(self) -> memoryview:
        """See Slots."""
        started = time.perf_counter()
        self._open = self._buffer
        if self._choice.level == NONE:
            # It is stored in a frame on its way out: nothing is copied.
            self._open = self._slots.acquire()[: self._size]
        self._since = time.perf_counter()
        self._waited = self._since - started
        return self._open

    def publish(self, length: int, *, stored: bool = False) -> None:
        """See Slots."""
        work = time.perf_counter() - self._since
        content = self._open[:length]
        self._sample(content)
        started, spent, sent = time.perf_counter(), 0.0, length
        if self._choice.level != NONE:
            compressed = self._framer.frame(content, self._choice.level)
            spent, sent = time.perf_counter() - started, len(compressed)
            started += spent
            self._slots.acquire()[:sent] = compressed
        self._slots.publish(sent, stored=stored or self._choice.level == NONE)
        waited = self._waited + time.perf_counter() - started
        self._counters.add("raw_bytes", length)
        self._counters.add("compressed_bytes", sent)
        self._choice.sent(SlotTimes(length, sent, work, spent, waited))
        self._counters.set("level", self._choice.level)

    def _sample(self, content: memoryview) -> None:
        if self._choice.wants is None:
            return
        started = time.perf_counter()
        size = len(self._framer.frame(content, self._choice.wants))
        self._choice.sampled(len(content), size, time.perf_counter() - started)
