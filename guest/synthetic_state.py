"""Pack the device state of a synthetic guest: its figures, and the table of sequence numbers.

The table is compressed, so that the time for which a guest is stopped hardly grows with its RAM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from .errors import GuestError
from .synthetic_memory import PATTERNS

_HEAD = struct.Struct("<QQQQQQQ")
"""Version, runs on, counter, hot pages, dirty rate, seed, pattern.

The table follows as little-endian u32 in one zstd frame.
"""
_VERSION = 4


@dataclass(frozen=True, eq=False)
class State:
    """The device state; `runs_on`: the guest ran before it was stopped to migrate.

    `counter`: pages written in its whole life; `hot`: number of pages that it writes again and
    again; `rate`: bytes that it writes per second; `table` (n,) u32: sequence numbers.
    """

    runs_on: bool
    counter: int
    hot: int
    rate: int
    seed: int
    pattern: str
    table: npt.NDArray[np.uint32]


def pack(state: State) -> bytes:
    """Return the bytes of a device state."""
    figures = (state.runs_on, state.counter, state.hot, state.rate, state.seed)
    head = _HEAD.pack(_VERSION, *figures, PATTERNS.index(state.pattern))
    return head + zstandard.ZstdCompressor(1).compress(state.table.astype("<u4").tobytes())


def unpack(data: bytes, pages: int) -> State:
    """Return the device state of a guest with this number of pages. Raises GuestError."""
    if len(data) < _HEAD.size:
        raise GuestError(f"synthetic: device state of {len(data)} bytes")
    version, runs_on, counter, hot, rate, seed, pattern = _HEAD.unpack_from(data)
    if version != _VERSION or pattern >= len(PATTERNS):
        raise GuestError(f"synthetic: device state has version {version}, pattern {pattern}")
    table = np.frombuffer(_table(data[_HEAD.size :], 4 * pages), "<u4").astype(np.uint32)
    return State(bool(runs_on), counter, hot, rate, seed, PATTERNS[pattern], table)


def _table(frame: bytes, size: int) -> bytes:
    """Return the `size` bytes of the table in a frame, which may be damaged or hostile."""
    try:
        if zstandard.frame_content_size(frame) == size:
            return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise GuestError(f"synthetic: device state is damaged: {error}") from error
    raise GuestError(f"synthetic: device state does not fit a guest of {size // 4} pages")
