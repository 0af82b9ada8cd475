"""Read the headers of sections, and remember which sections have begun and not ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import events
from ..devices.section_ends import Known
from ..errors import StreamError
from ..sections.registry import SectionReader, reader_of
from ..wire import stream
from ..wire.cursor import Cursor, decode_name
from ..wire.kept import Kept
from ..wire.marks import SectionType
from ..wire.ram import SECTION_NAME
from .ram_reader import RamReader


@dataclass(frozen=True)
class SectionStart:
    """The header of a section that begins at `offset` in the stream."""

    offset: int
    kind: SectionType
    section_id: int
    name: str
    instance_id: int
    version: int


class SectionTable:
    """The sections of one stream, with the readers of those that are iterative.

    `keep`: makes the places where pieces of unknown format are kept; `max_size`: limit for one
    such piece in bytes, None for no limit.
    """

    def __init__(self, ram: RamReader, keep: Callable[[], Kept], max_size: int | None) -> None:
        self.known = Known()
        """The parts of the stream so far."""
        self.open: dict[int, tuple[events.IterativeSection, SectionReader]] = {}
        """The iterative sections that have not ended, by section id."""
        self._ram = ram
        self._keep = keep
        self._max_size = max_size

    def read_start(self, cursor: Cursor) -> SectionStart:
        """Read the header of a new section.

        Raises StreamError if a section with this id, or this name and instance, began before.
        """
        start = cursor.offset
        header = cursor.take(stream.SectionHeader)
        name = decode_name(header.name)
        if name is None:
            raise StreamError(f"a section named {header.name!r}", offset=start)
        instance = (name, header.instance_id)
        if header.section_id in self.known.ids or instance in self.known.instances:
            message = f"section id {header.section_id} or its name and instance occur twice"
            raise StreamError(message, offset=start, section=name)
        self.known.ids.add(header.section_id)
        self.known.instances.add(instance)
        kind = SectionType(header.type)
        return SectionStart(start, kind, header.section_id, *instance, header.version)

    def open_section(
        self, start: SectionStart, *, footers: bool
    ) -> tuple[events.IterativeSection, SectionReader]:
        """Return the first piece of an iterative section, and a reader for its records.

        `footers`: whether sections end with footers, as far as known. Raises StreamError.
        """
        section = events.IterativeSection(**vars(start))
        reading: SectionReader = self._ram
        if section.name == SECTION_NAME:
            section = self._ram.start(section)
        else:
            keep, most = self._keep, self._max_size
            reading = reader_of(section, self.known, footers=footers, keep=keep, max_size=most)
        self.open[section.section_id] = (section, reading)
        self.known.open_ids.add(section.section_id)
        return section, reading

    def read_continuation(self, cursor: Cursor) -> tuple[events.IterativeSection, SectionReader]:
        """Read the header of a section's next piece; return the piece and its reader.

        Raises StreamError if no such section is open.
        """
        start = cursor.offset
        header = cursor.take(stream.SectionContinuation)
        if header.section_id not in self.open:
            message = f"section id {header.section_id} goes on, but was not begun or has ended"
            raise StreamError(message, offset=start)
        section, reading = self.open[header.section_id]
        kind = SectionType(header.type)
        if kind == SectionType.END:
            del self.open[header.section_id]
            self.known.open_ids.remove(header.section_id)
        return replace(section, offset=start, kind=kind), reading
