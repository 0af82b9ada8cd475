"""Where device sections end, though the stream does not say.

While reading: a footer with the section's id, followed by what may lawfully follow. At the end: the
lengths of the fields in the JSON description. Source: QEMU's documentation,
docs/devel/migration/main.rst, and the descriptions of captured streams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import events, stream
from .cursor import Cursor, Incomplete, decode_name
from .description import Length, described_lengths
from .errors import StreamError
from .marks import MAX_DEVICE_VERSION, MAX_SECTION_ID, CommandType, SectionType


@dataclass
class Known:
    """What of the stream so far bears on what may follow a device section."""

    ids: set[int] = field(default_factory=set)
    instances: set[tuple[str, int]] = field(default_factory=set)
    open_ids: set[int] = field(default_factory=set)
    max_description: int = 0
    at_end: bool = False


def find_end(cursor: Cursor, section_id: int, known: Known) -> tuple[int, bool]:
    """Search the section's footer from the cursor on.

    Returns a position in the view, and whether the footer stands there. If it does not, the
    payload goes on at least up to that position, and more bytes are needed.
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
    """Whether a part of a stream can begin here."""
    kind = cursor.peek()
    if kind == SectionType.EOF:
        return not known.open_ids and _is_end(cursor, known)
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
    if cursor.peek() != SectionType.VMDESCRIPTION:
        return False
    header = cursor.take(stream.DescriptionHeader)
    return header.length <= known.max_description and cursor.peek() == ord("{")


def settle(
    held: Sequence[events.Event],
    sections: Sequence[events.DeviceSection],
    lengths: dict[tuple[str, int], Length],
    raw: bytes,
) -> list[events.Event]:
    """The events held back, with device sections as long as the description says.

    `sections`: every device section of the stream; `raw`: the held events up to the end of the
    stream as they stood on the wire. Raises StreamError when stream and description contradict.
    """
    wrong = [s for s in sections if _disagrees(s, lengths)]
    if not wrong:
        return list(held)
    if held:
        again = split(raw, held[0].offset, lengths)
        if again is not None:
            rest = [e for e in held if isinstance(e, events.EndOfStream)]
            return [*again, *rest]
    for section in wrong:
        described = lengths[section.name, section.instance_id]
        if described.exact:
            raise StreamError(
                f"the section has {len(section.payload)} bytes, its description {described.size}",
                offset=section.payload_offset,
                section=section.name,
            )
    return list(held)


def _disagrees(section: events.DeviceSection, lengths: dict[tuple[str, int], Length]) -> bool:
    described = lengths.get((section.name, section.instance_id))
    return described is not None and described.size != len(section.payload)


def split(
    raw: bytes, offset: int, lengths: dict[tuple[str, int], Length], *, footers: bool = True
) -> list[events.DeviceSection] | None:
    """Take `raw` apart into device sections by their described lengths; None if it does not fit."""
    cursor = Cursor(memoryview(raw), offset)
    found = []
    try:
        while cursor.position < len(raw):
            found.append(_section_of_length(cursor, lengths, footers=footers))
    except (Incomplete, KeyError, stream.DeclarationError):
        return None
    return found


def _section_of_length(
    cursor: Cursor, lengths: dict[tuple[str, int], Length], *, footers: bool
) -> events.DeviceSection:
    start = cursor.offset
    header = cursor.take(stream.SectionHeader)
    name = header.name.decode(errors="replace")
    payload_offset = cursor.offset
    end = cursor.position + lengths[name, header.instance_id].size
    payload = bytearray()
    cursor.absorb(payload, end)
    ends = not footers or cursor.take(stream.SectionFooter).section_id == header.section_id
    if header.type != SectionType.FULL or cursor.position < end or not ends:
        raise KeyError(name)
    return events.DeviceSection(
        offset=start,
        section_id=header.section_id,
        name=name,
        instance_id=header.instance_id,
        version=header.version,
        payload=bytes(payload),
        payload_offset=payload_offset,
        footer=footers,
    )


def split_tail(
    tail: bytes, offset: int, *, footers: bool
) -> tuple[list[events.Event], events.EndOfStream, events.Description] | None:
    """Take apart all that stands behind RAM, by the description at its very end; None: no sense.

    Without footers what stands before the description may stay whole.
    """
    for match in re.finditer(rb"\x00\x06(....)(?=\{)", tail, re.DOTALL):
        if int.from_bytes(match[1], "big") != len(tail) - match.end():
            continue
        text = tail[match.end() :]
        try:
            description = json.loads(text)
            lengths = described_lengths(description)
        except (ValueError, RecursionError):
            continue
        raw = tail[: match.start()]
        sections: list[events.Event] = [*(split(raw, offset, lengths, footers=footers) or ())]
        if raw and not footers and not sections:
            sections = [events.UnsplitDevices(offset, raw)]
        if sections or not raw:
            eof = events.EndOfStream(offset + match.start())
            return sections, eof, events.Description(eof.offset + 1, text, description)
    return None
