"""Read a stream in zstd frames from the channel into the decompressor, to its end."""

from __future__ import annotations

from .compression import Inflater
from .input import Input

STORED_HEAD = 12
"""Bytes of a zstd frame that show whether it is stored."""


def take_frames(head: memoryview, source: Input, inflater: Inflater) -> None:
    """Decompress the stream, which begins with the bytes of `head`.

    Raises CompressedError, or what `inflater` raises as it hands the content on.
    """
    used = len(head)
    inflater.space[:used] = head
    while used:
        inflater.filled(used)
        _settle(inflater, source)
        _take_stored(inflater, source)
        _settle(inflater, source)
        if inflater.ended:
            return
        # A frame may turn out to be damaged up to its end.
        used = source.fill(inflater.space)
    inflater.close()


def _take_stored(inflater: Inflater, source: Input) -> None:
    """Read stored frames straight into slots, for as long as one follows another."""
    while (frame := inflater.begin_stored()) is not None:
        source.fill_frame(frame)
        inflater.end_stored(frame)
        if inflater.ended or not frame.good:
            return
        # Only enough to see whether the next frame is stored too; more would have to be copied.
        inflater.filled(source.fill(inflater.space[:STORED_HEAD], STORED_HEAD))


def _settle(inflater: Inflater, source: Input) -> None:
    """Hand on what is under way, unless more has arrived: the stream may be at its end."""
    while not inflater.idle and not source.waits:
        inflater.finish_one()
