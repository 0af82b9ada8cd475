"""How the outgoing stream is compressed: what a user may ask for, frames, the link's measure."""

from __future__ import annotations

from dataclasses import dataclass

import zstandard

from ..transport.counters import Counters
from .adaptive import LEVELS, Link

MAX_LEVEL = zstandard.MAX_COMPRESSION_LEVEL

COMPRESSION_COUNTERS = ("raw_bytes", "compressed_bytes", "level")
"""Of each process that compresses: bytes before and after, and the present level."""


LEAN_LEVEL = 1
LEAN_SIZE = 2 << 20
"""Bytes of a usual slot."""
TRY_EVERY = 32
"""Slots."""
AS_SMALL = 1.005
"""How much longer a frame may be for it to be made in less time."""
METER_BYTES, METER_NS = 4 << 20, 50_000_000
"""As soon as so much was sent, or sending took so long, the link is looked at anew."""


class CompressionError(ValueError):
    """Not a way to compress; one line."""


@dataclass(frozen=True)
class Compression:
    """`level` of zstd; None: adaptive."""

    level: int | None

    @property
    def levels(self) -> tuple[int, ...]:
        """Those to choose from."""
        return LEVELS if self.level is None else (self.level,)

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
    """Makes frames, each of which says how much it holds; for one thread.

    At level 1 a good part of the time goes into coding by their frequency the bytes that match
    nothing before them. Where that gains next to nothing, as with pages that are compressed or
    encrypted in part, they are left as they are; now and then both are tried.
    """

    def __init__(self) -> None:
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}
        lean = zstandard.ZstdCompressionParameters.from_level(
            LEAN_LEVEL, source_size=LEAN_SIZE, target_length=1, write_content_size=True
        )
        self._lean = zstandard.ZstdCompressor(compression_params=lean)
        self._is_lean = False
        self._frames = 0

    def frame(self, content: memoryview | bytes, level: int) -> bytes:
        """One zstd frame with this content."""
        if level == LEAN_LEVEL and len(content) >= LEAN_SIZE // 2:
            self._frames += 1
            if self._frames % TRY_EVERY == 1:
                return self._try_both(content)
            if self._is_lean:
                return self._lean.compress(content)
        return self._usual(content, level)

    def _usual(self, content: memoryview | bytes, level: int) -> bytes:
        if level not in self._compressors:
            self._compressors[level] = zstandard.ZstdCompressor(level, write_content_size=True)
        return self._compressors[level].compress(content)

    def _try_both(self, content: memoryview | bytes) -> bytes:
        usual, lean = self._usual(content, LEAN_LEVEL), self._lean.compress(content)
        self._is_lean = len(lean) <= len(usual) * AS_SMALL
        return min(usual, lean, key=len)


class LinkMeter:
    """The link by what the transport process counts in `sent`: bytes, and time spent sending them.

    `limits`: has `max_bandwidth`, bytes a second; 0: none.
    """

    def __init__(self, sent: Counters, limits: Counters) -> None:
        self._sent = sent
        self._limits = limits
        self._before = (0, 0)
        self._seconds = 0.0

    def look(self) -> Link:
        """The link as it was while the last few slots were sent."""
        total, busy_ns = self._sent["transferred"], self._sent["busy_ns"]
        sent, spent = total - self._before[0], busy_ns - self._before[1]
        if sent and (sent >= METER_BYTES or spent >= METER_NS):
            self._seconds = spent / 1e9 / sent
            self._before = (total, busy_ns)
        limit = self._limits["max_bandwidth"]
        return Link(total, self._seconds, 1 / limit if limit else 0.0)
