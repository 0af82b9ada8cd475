"""Searches a file for a stream that does not begin at the start of the file."""

from __future__ import annotations

import io
import re
from typing import BinaryIO, NamedTuple

from ...protocol.errors import StreamError
from ...protocol.formats import libvirt
from ...protocol.wire import stream
from ...protocol.wire.cursor import Cursor, Incomplete, decode_name
from ...protocol.wire.marks import MAGIC, MAX_NAME, MAX_SECTION_ID, VERSION, SectionType
from .compressed import FORMATS, format_of

MAX_SEARCHED = 64 << 20
"""The number of bytes from the start of a file that are searched for a stream."""
_STEP = 4 << 20
_AHEAD = 1 << 20
"""The number of bytes after a magic that are decompressed to check it; this is more than one block.
"""
_MAX_TRIALS = 4096
"""The most magics of compressed data that are checked; random data has a few in 64 MiB."""
_LONGEST_MAGIC = len(libvirt.MAGIC)
_HEADER = MAGIC.to_bytes(4, "big") + VERSION.to_bytes(4, "big")


class Place(NamedTuple):
    """The offset at which readable data begins, and a description of that data."""

    offset: int
    what: str


def _patterns() -> re.Pattern[bytes]:
    magics = [_HEADER, libvirt.MAGIC, libvirt.UNFINISHED_MAGIC]
    # The magic of a .lzma file is a single byte, which is too short to search for.
    magics += [format_.magic for format_ in FORMATS if len(format_.magic) > 1]
    return re.compile(b"|".join(map(re.escape, magics)))


def find_stream(source: BinaryIO) -> Place | None:
    """Return the first offset at which a stream, or something that holds one, begins, or None.

    The offset counts from the current position of `source`. At most MAX_SEARCHED bytes are
    searched.
    """
    pattern, trials, start = _patterns(), 0, 0
    data = source.read(_STEP + _AHEAD)
    while data and start < MAX_SEARCHED:
        for match in pattern.finditer(data, 0, _STEP + _LONGEST_MAGIC - 1):
            head = data[match.start() : match.start() + _AHEAD]
            what = _directly(head)
            if what is None and trials < _MAX_TRIALS and format_of(head) is not None:
                trials += 1
                what = _compressed(head)
            if what is not None:
                return Place(start + match.start(), what)
        start += _STEP
        data = data[_STEP:]
        data += source.read(_STEP + _AHEAD - len(data))
    return None


def _directly(head: bytes) -> str | None:
    """Return a description of the stream or save image that starts with `head`, or None."""
    if head.startswith((libvirt.MAGIC, libvirt.UNFINISHED_MAGIC)):
        raw = head[: libvirt.HEADER_SIZE]
        whole = len(raw) == libvirt.HEADER_SIZE
        known = whole and any(one.parse(raw).version in (1, 2) for one in libvirt.HEADERS)
        return "a libvirt save image" if known else None
    if head.startswith(_HEADER) and _may_go_on(head[len(_HEADER) :]):
        return "a migration stream"
    return None


def _may_go_on(head: bytes) -> bool:
    """Return whether `head` is a valid start of the first part of a stream."""
    cursor = Cursor(memoryview(head), 0)
    try:
        kind = cursor.peek()
        if kind == SectionType.CONFIGURATION:
            size = int.from_bytes(head[1:5], "big")
            return size <= MAX_NAME and decode_name(head[5 : 5 + size]) is not None
        if kind in (SectionType.START, SectionType.FULL):
            section = cursor.take(stream.SectionHeader)
            return section.section_id < MAX_SECTION_ID and decode_name(section.name) is not None
    except (Incomplete, StreamError):
        return False
    return kind == SectionType.COMMAND


def _compressed(head: bytes) -> str | None:
    """Return a description of the stream or save image in compressed data, or None."""
    found = format_of(head)
    assert found is not None
    try:
        content = found.open(io.BytesIO(head), 0)
        inside = bytearray(libvirt.HEADER_SIZE)
        filled, view = 0, memoryview(inside)
        while filled < len(inside) and (count := content.readinto(view[filled:])):
            filled += count
    except StreamError:
        return None
    what = _directly(bytes(inside[:filled]))
    return None if what is None else f"{what} in {found.name} data"
