"""Parse the compression setting, make zstd frames, and measure the link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import zstandard

from ..protocol.errors import ParameterError
from .adaptive import LEVELS, Link

MAX_LEVEL = zstandard.MAX_COMPRESSION_LEVEL

COMPRESSION_COUNTERS = ("raw_bytes", "compressed_bytes", "level")
"""Counters of each process that compresses: bytes before and after, and the present level."""


LEAN_LEVEL = 1
LEAN_SIZE = 2 << 20
"""Bytes of a usual slot, for which the parameters of the lean frame are chosen."""
TRY_EVERY = 32
"""Number of frames after which both ways to compress are tried again."""
AS_SMALL = 1.005
"""Factor by which a lean frame may be larger than a usual one and still be preferred."""
METER_BYTES, METER_NS = 4 << 20, 50_000_000
"""The link is measured again after this many bytes sent or this many nanoseconds of sending."""


class CompressionError(ParameterError):
    """A compression that does not exist; the message is one line."""


@dataclass(frozen=True)
class Compression:
    """The compression of a migration: `level` is the zstd level, or None for adaptive."""

    level: int | None

    @property
    def levels(self) -> tuple[int, ...]:
        """Return the levels to choose from."""
        return LEVELS if self.level is None else (self.level,)

    def __str__(self) -> str:
        return "adaptive" if self.level is None else f"zstd:{self.level}"


def parse_compression(text: str) -> Compression | None:
    """Parse `none`, `zstd[:LEVEL]` or `adaptive`; return None for no compression.

    Raises CompressionError.
    """
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
    """A maker of zstd frames that state their content size; for use by one thread.

    At level 1 a good part of the time is spent on entropy coding of literals, the bytes that match
    nothing before them. Where that gains next to nothing, as with pages that are partly compressed
    or encrypted, a lean frame leaves them uncoded. Both ways are tried from time to time.
    """

    def __init__(self, *, checksum: bool = False) -> None:
        """Prepare to compress; with `checksum`, each frame ends with a checksum of its content."""
        self._checksum = checksum
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}
        lean = zstandard.ZstdCompressionParameters.from_level(
            LEAN_LEVEL,
            source_size=LEAN_SIZE,
            target_length=1,
            write_content_size=True,
            write_checksum=checksum,
        )
        self._lean = zstandard.ZstdCompressor(compression_params=lean)
        self._is_lean = False
        self._frames = 0

    def frame(self, content: memoryview | bytes, level: int) -> bytes:
        """Return one zstd frame with this content."""
        if level == LEAN_LEVEL and len(content) >= LEAN_SIZE // 2:
            self._frames += 1
            if self._frames % TRY_EVERY == 1:
                return self._try_both(content)
            if self._is_lean:
                return self._lean.compress(content)
        return self._usual(content, level)

    def _usual(self, content: memoryview | bytes, level: int) -> bytes:
        if level not in self._compressors:
            self._compressors[level] = zstandard.ZstdCompressor(
                level, write_content_size=True, write_checksum=self._checksum
            )
        return self._compressors[level].compress(content)

    def _try_both(self, content: memoryview | bytes) -> bytes:
        usual, lean = self._usual(content, LEAN_LEVEL), self._lean.compress(content)
        self._is_lean = len(lean) <= len(usual) * AS_SMALL
        return min(usual, lean, key=len)


class Counts(Protocol):
    """Numbers by name, which others count."""

    def __getitem__(self, name: str) -> int: ...


class LinkMeter:
    """A measure of the link, from the counters of the transport process.

    `sent` counts bytes and the time spent sending them. `limits` has `max_bandwidth` in bytes per
    second; 0 means no limit.
    """

    def __init__(self, sent: Counts, limits: Counts) -> None:
        self._sent = sent
        self._limits = limits
        self._before = (0, 0)
        self._seconds = 0.0

    def look(self) -> Link:
        """Return the speed of the link while the last few slots were sent."""
        total, busy_ns = self._sent["transferred"], self._sent["busy_ns"]
        sent, spent = total - self._before[0], busy_ns - self._before[1]
        if sent and (sent >= METER_BYTES or spent >= METER_NS):
            self._seconds = spent / 1e9 / sent
            self._before = (total, busy_ns)
        limit = self._limits["max_bandwidth"]
        return Link(total, self._seconds, 1 / limit if limit else 0.0)
