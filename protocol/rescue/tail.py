"""Find the device sections after RAM from both ends, if the stream is damaged between.

The description at the very end has the names, the order and the lengths of all devices, so a
section is accepted if its header and its footer are as far apart as it says: from RAM on forwards,
and from the end of the stream backwards, each up to the damage. Nothing is searched for between
these: the state of one device may look like another device's section.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .. import events
from ..devices.description import DescriptionError, Length, described_lengths
from ..errors import StreamError
from ..wire import stream
from ..wire.cursor import Cursor, Incomplete, decode_name
from ..wire.marks import MAX_DEVICE_VERSION, MAX_SECTION_ID, SectionType

ReadAt = Callable[[int, int], bytes]
"""Function that returns `size` bytes from a position in the stream on, or fewer at its end.

Arguments: position, size.
"""

SEARCHED = 16 << 20
"""Bytes at the end of a stream in which its description is searched for."""
MAX_SECTION = 64 << 20
"""Limit for a device section that is accepted without a description, in bytes."""
_MAX_TRIES = 16
"""Limit for the places examined that may be the beginning of a description."""
_MAX_STEPS = 1 << 17
"""Limit for the comparisons of bytes before a place with described devices."""
_WINDOW, _MAX_WINDOW = 64 << 10, 4 << 20
"""Bytes in which a footer is searched for at once, at first and at most."""
_HEADER = 512
"""Limit for the header of a section, in bytes; more than any has."""
_START = re.compile(rb"\x00\x06(....)(?=\{)", re.DOTALL)


@dataclass
class Tail:
    """The events found after RAM, in the order of the stream.

    `confirmed`: True if by the description, False if by footers alone. `lost`: names and instance
    ids of described devices that were not found. `start`: position of the first section found,
    counted from the end without a gap; None if not known.
    """

    found: list[events.Event] = field(default_factory=list)
    description: events.Description | None = None
    confirmed: bool = False
    lost: list[tuple[str, int]] = field(default_factory=list)
    start: int | None = None


def find_description(read_at: ReadAt, size: int) -> events.Description | None:
    """Return the description of a stream of `size` bytes, searched for from its end."""
    first = max(0, size - SEARCHED)
    text = read_at(first, size - first)
    for match in [*_START.finditer(text)][: -_MAX_TRIES - 1 : -1]:
        length = int.from_bytes(match[1], "big")
        body = text[match.end() : match.end() + length]
        # QEMU writes the description in one line that ends with a brace, so an incomplete one need
        # not be parsed.
        if len(body) < length or not body.endswith(b"}"):
            continue
        try:
            found = json.loads(body)
            described_lengths(found)
        except (ValueError, RecursionError, DescriptionError):
            continue
        return events.Description(first + match.start() + 1, body, found)
    return None


def read_backwards(
    read_at: ReadAt, described: events.Description, start: int, *, footers: bool = True
) -> list[events.DeviceSection]:
    """Return the device sections found backwards from the description.

    Each has its described length. `start`: no section begins before that position.
    """
    lengths = described_lengths(described.json)
    left, found = [*lengths.items()], []
    end, steps = described.offset - 1, 0
    while left and steps < _MAX_STEPS:
        for back in range(len(left) - 1, -1, -1):
            steps += 1
            (name, instance), length = left[back]
            section = _ending_at(read_at, end, (name, instance, length.size), footers=footers)
            if section is not None and section.offset >= start:
                break
        else:
            break
        found.append(section)
        end = section.offset
        del left[back:]
    return found[::-1]


def _ending_at(
    read_at: ReadAt, end: int, wanted: tuple[str, int, int], *, footers: bool
) -> events.DeviceSection | None:
    name, instance, size = wanted
    ids = b"\0" * 4
    header = b"\4" + ids + bytes([len(name.encode())]) + name.encode() + instance.to_bytes(4, "big")
    behind = end - (stream.FOOTER_SIZE if footers else 0)
    start = behind - size - len(header) - 4
    if start < 0:
        return None
    head = read_at(start, len(header) + 4)
    if head[:1] != header[:1] or head[5 : len(header)] != header[5:]:
        return None
    section_id = int.from_bytes(head[1:5], "big")
    if footers and read_at(behind, stream.FOOTER_SIZE) != stream.section_footer(section_id):
        return None
    version, place = int.from_bytes(head[-4:], "big"), start + len(head)
    payload = read_at(place, size)
    return events.DeviceSection(start, section_id, name, instance, version, payload, place, footers)


def read_forwards(
    read_at: ReadAt,
    start: int,
    end: int,
    lengths: dict[tuple[str, int], Length] | None,
    *,
    footers: bool = True,
) -> tuple[list[events.Event], int]:
    """Return the sections from `start` on, up to `end` at most, and the position after them.

    `lengths`: of the devices, as described; None if only footers show where sections end.
    """
    found: list[events.Event] = []
    last = -1
    while start < end:
        head = read_at(start, _HEADER)
        cursor = Cursor(memoryview(head), start)
        try:
            kind = cursor.peek()
            if kind == SectionType.COMMAND:
                # Commands are for the other end of a channel.
                cursor.take(stream.Command)
                start = cursor.offset
                continue
            if kind == SectionType.EOF:
                found.append(events.EndOfStream(start))
                return found, start + 1
            section = None
            if kind == SectionType.FULL:
                section = _section(read_at, cursor, last, lengths, footers=footers)
        except (Incomplete, StreamError):
            section = None
        if section is None:
            break
        start = (
            section.payload_offset + len(section.payload) + (stream.FOOTER_SIZE if footers else 0)
        )
        if start > end:
            break
        last = section.section_id
        found.append(section)
    return found, start


def _section(
    read_at: ReadAt,
    cursor: Cursor,
    last: int,
    lengths: dict[tuple[str, int], Length] | None,
    *,
    footers: bool,
) -> events.DeviceSection | None:
    offset = cursor.offset
    header = cursor.take(stream.SectionHeader)
    name = decode_name(header.name)
    sane = header.section_id < MAX_SECTION_ID and header.version < MAX_DEVICE_VERSION
    if name is None or not sane or header.section_id <= last:
        return None
    place, size = cursor.offset, None
    footer = stream.section_footer(header.section_id)
    if lengths is None:
        size = _up_to_footer(read_at, place, footer) if footers else None
    elif (name, header.instance_id) in lengths:
        size = lengths[name, header.instance_id].size
        if footers and read_at(place + size, len(footer)) != footer:
            size = None
    if size is None:
        return None
    payload = read_at(place, size)
    if len(payload) < size:
        return None
    ids = (header.section_id, name, header.instance_id, header.version)
    return events.DeviceSection(offset, *ids, payload, place, footers)


def _up_to_footer(read_at: ReadAt, place: int, footer: bytes) -> int | None:
    """Return the bytes up to the first footer followed by a section or the end of the stream.

    Returns None if there is none.
    """
    window, start = _WINDOW, 0
    while start < MAX_SECTION:
        data = read_at(place + start, window)
        for match in re.finditer(re.escape(footer), data):
            if len(data) - match.end() < _HEADER and len(data) == window:
                break
            behind = data[match.end() : match.end() + _HEADER]
            if _may_follow(behind, int.from_bytes(footer[1:], "big")):
                return start + match.start()
        if len(data) < window:
            return None
        # A footer at the end of the window is examined again, with everything that follows it.
        start += window - _HEADER - len(footer)
        window = min(2 * window, _MAX_WINDOW)
    return None


def _may_follow(behind: bytes, section_id: int) -> bool:
    cursor = Cursor(memoryview(behind), 0)
    if behind[:1] == bytes([SectionType.FULL]):
        try:
            header = cursor.take(stream.SectionHeader)
        except (Incomplete, StreamError):
            return False
        sane = section_id < header.section_id < MAX_SECTION_ID
        return sane and header.version < MAX_DEVICE_VERSION and decode_name(header.name) is not None
    return behind[:2] == bytes([SectionType.EOF, SectionType.VMDESCRIPTION])


def find_tail(
    read_at: ReadAt,
    size: int,
    ram_end: int | None,
    seen: Sequence[tuple[str, int]],
    *,
    footers: bool = True,
) -> Tail:
    """Return the events found after RAM in a stream of `size` bytes.

    `ram_end`: position of the first section after RAM, None if not known; `seen`: names and
    instance ids of the devices that arrived before.
    """
    described = find_description(read_at, size)
    if described is None:
        if ram_end is None:
            return Tail()
        forwards, _ = read_forwards(read_at, ram_end, size, None, footers=footers)
        return Tail(forwards, start=ram_end)
    lengths = described_lengths(described.json)
    first: list[events.Event] = []
    reached = ram_end or 0
    if ram_end is not None:
        first, reached = read_forwards(read_at, ram_end, described.offset, lengths, footers=footers)
    eof = described.offset - 1
    back: list[events.DeviceSection] = []
    if reached < described.offset:
        back = read_backwards(read_at, described, reached, footers=footers)
        between = back[0].offset if back else eof
        first += _section_between(read_at, (reached, between), lengths, footers=footers)
        first = [event for event in first if not isinstance(event, events.EndOfStream)]
        first += [*back, events.EndOfStream(eof)]
    found = {*seen, *(_key(event) for event in first if isinstance(event, events.DeviceSection))}
    lost = [key for key in lengths if key not in found]
    start = ram_end if ram_end is not None else back[0].offset if back else eof
    return Tail([*first, described], described, True, lost, start)


def _section_between(
    read_at: ReadAt,
    between: tuple[int, int],
    lengths: dict[tuple[str, int], Length],
    *,
    footers: bool,
) -> list[events.DeviceSection]:
    """Return the one section that fills the bytes between two places.

    A section counts only if its described length is not exact.
    """
    start, end = between
    cursor = Cursor(memoryview(read_at(start, _HEADER)), start)
    try:
        header = cursor.take(stream.SectionHeader)
    except (Incomplete, StreamError):
        return []
    name = header.name.decode(errors="replace")
    length = lengths.get((name, header.instance_id))
    place, footer = cursor.offset, stream.section_footer(header.section_id)
    size = end - place - (len(footer) if footers else 0)
    fits = not footers or read_at(place + size, len(footer)) == footer
    if header.type != SectionType.FULL or length is None or length.exact or size < 0 or not fits:
        return []
    ids = (header.section_id, name, header.instance_id, header.version)
    payload = read_at(place, size)
    return [events.DeviceSection(start, *ids, payload, place, footers)]


def _key(section: events.DeviceSection) -> tuple[str, int]:
    return section.name, section.instance_id


def as_text(keys: Sequence[tuple[str, int]]) -> str:
    """Return devices as `name#instance`, on one line."""
    return ", ".join(f"{name}#{instance}" for name, instance in keys)
