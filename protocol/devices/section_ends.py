"""Guess where sections end whose length is not known when they are read.

The end is the first footer with the section's id that is followed by a valid part of a stream.
Sections of unknown kinds are read in this way, and devices before RAM, whose lengths the
description confirms later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..errors import StreamError
from ..wire import stream
from ..wire.cursor import Cursor, Incomplete, decode_name
from ..wire.marks import MAX_DEVICE_VERSION, MAX_SECTION_ID, CommandType, SectionType


@dataclass
class Known:
    """The parts of the stream so far that limit what may follow a device section."""

    ids: set[int] = field(default_factory=set)
    instances: set[tuple[str, int]] = field(default_factory=set)
    open_ids: set[int] = field(default_factory=set)
    at_end: bool = False
    in_package: bool = False


def find_end(cursor: Cursor, section_id: int, known: Known) -> tuple[int, bool]:
    """Search for the section's footer from the cursor on.

    Returns a position in the view, and whether the footer is there. If it is not, the payload
    extends at least up to that position, and more bytes are needed.
    """
    footer = stream.section_footer(section_id)
    for match in re.compile(re.escape(footer)).finditer(cursor.view, cursor.position):
        after = Cursor(cursor.view, 0)
        after.position = match.end()
        try:
            if _may_follow(after, known):
                return match.start(), True
        except Incomplete:
            return match.start(), False
        except StreamError:
            continue
    return max(cursor.position, len(cursor.view) - len(footer) + 1), False


def _may_follow(cursor: Cursor, known: Known) -> bool:
    """Return whether a part of a stream can begin here."""
    kind = cursor.peek()
    if kind == SectionType.EOF:
        return not known.in_package and _is_end(cursor, known)
    if kind in (SectionType.START, SectionType.FULL):
        header = cursor.take(stream.SectionHeader)
        sane = header.section_id < MAX_SECTION_ID and header.version < MAX_DEVICE_VERSION
        return sane and header.section_id not in known.ids and decode_name(header.name) is not None
    if kind in (SectionType.PART, SectionType.END):
        header = cursor.take(stream.SectionContinuation)
        return bool(header.section_id in known.open_ids)
    if kind == SectionType.COMMAND:
        return cursor.take(stream.Command).command in list(CommandType)
    return False


def _is_end(cursor: Cursor, known: Known) -> bool:
    cursor.take(stream.EndOfStream)
    if known.at_end and cursor.position == len(cursor.view):
        return True
    return bool(cursor.peek() == SectionType.VMDESCRIPTION)
