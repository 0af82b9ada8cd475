"""Examines a file near the offset where its stream becomes invalid, to find how it was damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from ...protocol.errors import StreamError
from ...protocol.formats.zstd import CompressedError
from ..console.failure import ChannelError
from .containers import Opened
from .source import left_in

_WINDOW = 1 << 20
"""The number of bytes before the offset, and after it, that are searched for line ends."""
_FEWEST_LINES = 4
"""The fewest line feeds that count as a sign of damage if each follows a carriage return. In random
data, only 1 of 256 line feeds does.
"""
_SECTOR = 512
_MAX_HOLE = 1 << 30
"""The largest hole, in bytes, whose ends are searched for."""


def explain(error: StreamError, opened: Opened) -> None:
    """Append to the error's message how the file was damaged, if that can be detected."""
    if isinstance(error, (CompressedError, ChannelError)) or not opened.stream.seekable():
        return
    sign = _sign(opened.stream, opened.start, error.offset)
    if sign is not None and sign not in error.message:
        error.message = f"{error.message}; {sign}"


def _sign(stream: BinaryIO, start: int, place: int) -> str | None:
    stream.seek(start)
    end = left_in(stream).count

    def read(at: int, size: int) -> bytes:
        stream.seek(start + at)
        return stream.read(size)

    first = max(0, place - _WINDOW)
    near = read(first, place - first + _WINDOW)
    lines = near.count(b"\n")
    if lines >= _FEWEST_LINES and near.count(b"\r\n") == lines:
        return "carriage returns precede all its line feeds: copy the file as binary, not text"
    hole_start, hole_end = _zeros_before(read, place), _zeros_behind(read, place)
    to_the_end = hole_end >= end
    hole_start = -(-hole_start // _SECTOR) * _SECTOR
    hole_end = end if to_the_end else hole_end // _SECTOR * _SECTOR
    if not hole_start <= place < hole_end or hole_end - hole_start < _SECTOR:
        return None
    if to_the_end:
        return f"from {hole_start:#x} to its end the file has zeros only: its rest was not written"
    return f"a hole of zeros from {hole_start:#x} to {hole_end:#x}: that part of the file was lost"


def _zeros_before(read: Callable[[int, int], bytes], place: int) -> int:
    """Return the offset at which the zeros that end at `place` begin."""
    at = place
    while at > max(0, place - _MAX_HOLE):
        start = max(0, at - _WINDOW)
        rest = read(start, at - start).rstrip(b"\0")
        if rest:
            return start + len(rest)
        at = start
    return at


def _zeros_behind(read: Callable[[int, int], bytes], place: int) -> int:
    """Return the offset at which the zeros that begin at `place` end."""
    at = place
    while at < place + _MAX_HOLE and (data := read(at, _WINDOW)):
        rest = data.lstrip(b"\0")
        at += len(data) - len(rest)
        if rest:
            break
    return at
