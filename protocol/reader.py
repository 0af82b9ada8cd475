"""Reads a stream, in pieces of any size, and gives its events; does no I/O.

The reader is a state machine: `_step` is the method that reads what comes next. Each step takes one
whole part from the cursor and returns its events, or raises Incomplete. Iterative sections have
readers of their own (see `sections`), of which one is at work at a time.

The end of a device section is found by its footer (see `devices`). Sections behind RAM are held
back until the description confirms their lengths, or the stream ends without one (see `ending`).
Nothing read is trusted: what is wrong raises StreamError, with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import devices, events, ram, stream
from .commands import read_command
from .configuration import IGNORE_SHARED, MAPPED_RAM, checked_page_size, read_configuration
from .cursor import Cursor, Incomplete, decode_name
from .ending import Ending, check_page_size, read_description
from .errors import CutError, StreamError, UnsupportedError
from .marks import MAGIC, MULTIFD_MAGIC, VERSION, CommandType, SectionType
from .ram_reader import RamReader
from .sections import SectionReader, reader_of
from .writer import StreamWriter

_Step = Callable[[Cursor], Sequence[events.Event]]


class StreamReader:
    """One stream from its first byte to its end.

    `page_size`: bytes, where the stream does not say before its pages come. `max_section`: bound
    for what has to be held in memory, in bytes: one device section, all behind RAM, the
    description. `max_total_ram`: bytes of RAM that a stream may announce.
    """

    def __init__(
        self, *, page_size: int = 4096, max_section: int = 64 << 20, max_total_ram: int = 1 << 46
    ) -> None:
        self._max_section = max_section
        self._ram = RamReader(page_size, max_total_ram)
        self._known = devices.Known(max_description=max_section)
        self._open: dict[int, tuple[events.IterativeSection, SectionReader]] = {}
        self._step: _Step = self._header
        self._offset = 0
        self._rest = b""
        self._collected = bytearray()
        self._section: tuple[int, Any, str] | None = None
        self._reading: SectionReader = self._ram
        self._footers: bool | None = None
        self._package_end: int | None = None
        self._ending = Ending()
        self._error: StreamError | None = None
        self.finished = False

    @property
    def ram(self) -> RamReader:
        """The state of the `ram` section: what goes on behind damage begins with it."""
        return self._ram

    @property
    def open_sections(self) -> dict[int, tuple[events.IterativeSection, SectionReader]]:
        """The iterative sections that have not ended, by their ids."""
        return self._open

    @property
    def has_footers(self) -> bool:
        """Whether sections end with footers, as far as known."""
        return self._footers is not False

    @property
    def page_size(self) -> int:
        """Bytes of a page, as far as known by now."""
        return self._ram.page_size

    @property
    def awaiting_description(self) -> bool:
        """The stream may end here; only a description may follow, or nothing."""
        return not self.finished and (
            self._step in (self._after_eof, self._description, self._tail)
            or (self._step == self._device and not self._open and self._ends_in_eof())
        )

    def _ends_in_eof(self) -> bool:
        assert self._section is not None
        return self._rest == stream.section_footer(self._section[1].section_id) + b"\0"

    @property
    def to_skip(self) -> int:
        """Bytes that follow and are looked up elsewhere: see `skip`."""
        return 0 if self._rest else max(0, self._ram.block_list.gap_end - self._offset)

    def skip(self, count: int) -> None:
        """Pass `count` bytes that follow, at most `to_skip`, without presenting them."""
        assert count <= self.to_skip
        self._offset += count

    def parse(self, view: memoryview) -> tuple[list[events.Event], int]:
        """The events in `view`, and how many of its bytes are done with.

        The caller presents the rest again, with more behind it; it is short: part of one page
        record, or of one structure. Page data of the events are views on `view`. A StreamError
        carries the events before it, as `found`.
        """
        cursor = Cursor(view, self._offset)
        found: list[events.Event] = []
        try:
            while not self.finished:
                found += self._step(cursor)
                cursor.commit()
        except Incomplete:
            pass
        except StreamError as error:
            if error.section is None and self._section is not None:
                error.section = self._section[2]
            if not self._ending.held or self._step == self._description:
                error.found = found
                raise
            self._doubt(cursor, error)
        resolved = self._resolve_tail(view, cursor.done)
        if resolved:
            found += resolved
            cursor.done = len(view)
        self._offset += cursor.done
        self._rest = bytes(view[cursor.done :])
        return found, cursor.done

    def feed(self, data: bytes | bytearray | memoryview) -> list[events.Event]:
        """The events in the next piece of the stream, of any size. Copies what is fed."""
        return self.parse(memoryview(b"".join((self._rest, data))))[0]

    def close(self) -> list[events.Event]:
        """The input has ended: the last events. Raises StreamError if the stream has not."""
        if self.finished:
            return []
        self._known.at_end = True
        found = self.feed(b"")
        if self.finished:
            return found
        if self._error is not None:
            raise self._error
        if self._step == self._tail and self._collected.endswith(b"\0"):
            # No footers, no description: what stands before the last byte stays whole.
            start = self._offset - len(self._collected)
            devices_of_all = events.UnsplitDevices(start, bytes(self._collected[:-1]))
            found += [devices_of_all, events.EndOfStream(self._offset - 1)]
        elif self._step != self._after_eof or self._rest:
            where = self._step.__name__.strip("_").replace("_", " ")
            raise CutError(
                f"the stream ends early, in: {where}",
                offset=self._offset + len(self._rest),
                section=None if self._section is None else self._section[2],
            )
        self.finished = True
        return found + self._ending.release()

    # The steps, in the order of a stream.

    def _header(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        header = cursor.take(stream.FileHeader)
        if header.magic == MULTIFD_MAGIC:
            message = (
                "this is a further connection of a source that uses several; switch that off there "
                "(migrate_set_capability multifd off)"
            )
            raise UnsupportedError(message, offset=start)
        if header.magic != MAGIC:
            raise StreamError("not a migration stream: no QEVM at its start", offset=start)
        if header.version != VERSION:
            raise UnsupportedError(f"stream version {header.version}", offset=start + 4)
        self._step = self._configuration
        return [events.Header(start, header.version)]

    def _configuration(self, cursor: Cursor) -> list[events.Event]:
        if cursor.peek() != SectionType.CONFIGURATION:
            self._step = self._part
            return []
        event = read_configuration(cursor)
        blocks, capabilities = self._ram.block_list, event.capabilities or ()
        if event.page_size is not None:
            blocks.page_size, blocks.page_size_said = event.page_size, True
        blocks.addressed = IGNORE_SHARED in capabilities
        blocks.mapped = MAPPED_RAM in capabilities
        self._step = self._part
        return [event]

    def _part(self, cursor: Cursor) -> Sequence[events.Event]:
        """Whatever the next byte says that comes next."""
        self._section = None
        if self._package_end is not None and cursor.offset >= self._package_end:
            if cursor.offset > self._package_end:
                message = f"the package before ended at {self._package_end:#x}, within a section"
                raise StreamError(message, offset=cursor.offset)
            self._package_end = None
        kind = cursor.peek()
        read = self._parts().get(kind)
        if read is None:
            raise StreamError(f"byte {kind:#04x} where a section begins", offset=cursor.offset)
        return read(cursor)

    def _parts(self) -> dict[int, _Step]:
        return {
            SectionType.EOF: self._eof,
            SectionType.START: self._section_header,
            SectionType.FULL: self._tail if self._footers is False else self._section_header,
            SectionType.PART: self._continuation,
            SectionType.END: self._continuation,
            SectionType.COMMAND: self._command,
        }

    def _section_header(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        header = cursor.take(stream.SectionHeader)
        name = decode_name(header.name)
        if name is None:
            raise StreamError(f"a section named {header.name!r}", offset=start)
        instance = (name, header.instance_id)
        if header.section_id in self._known.ids or instance in self._known.instances:
            message = f"section id {header.section_id} or its name and instance come twice"
            raise StreamError(message, offset=start, section=name)
        self._known.ids.add(header.section_id)
        self._known.instances.add(instance)
        self._section = (start, header, name)
        if header.type == SectionType.FULL:
            self._collected = bytearray()
            self._step = self._device
            return []
        ids = (header.section_id, name, header.instance_id, header.version)
        section = events.IterativeSection(start, SectionType.START, *ids)
        if name == ram.SECTION_NAME:
            section, self._reading = self._ram.start(section), self._ram
        else:
            footers, limit = self._footers is not False, self._max_section
            self._reading = reader_of(section, self._known, footers=footers, max_size=limit)
        self._open[header.section_id] = (section, self._reading)
        self._known.open_ids.add(header.section_id)
        return [*self._ending.release(), *self._begin(section)]

    def _continuation(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        header = cursor.take(stream.SectionContinuation)
        if header.section_id not in self._open:
            message = f"section id {header.section_id} goes on, but was not begun or has ended"
            raise StreamError(message, offset=start)
        section, self._reading = self._open[header.section_id]
        self._section = (start, header, section.name)
        kind = SectionType(header.type)
        if kind == SectionType.END:
            del self._open[header.section_id]
            self._known.open_ids.remove(header.section_id)
        return [*self._ending.release(), *self._begin(replace(section, offset=start, kind=kind))]

    def _begin(self, section: events.IterativeSection) -> list[events.Event]:
        self._reading.begin(section.kind)
        self._step = self._records
        return [section]

    def _records(self, cursor: Cursor) -> Sequence[events.Event]:
        found = self._reading.read(cursor)
        if self._reading.at_end:
            self._step = self._footer
        elif len(found) > 1:
            # The seam between two pieces of `ram`, with its footer.
            self._footers = True
        return found

    def _footer(self, cursor: Cursor) -> list[events.Event]:
        assert self._section is not None
        start, section_id = cursor.offset, self._section[1].section_id
        kind = cursor.peek()
        if kind == SectionType.FOOTER and self._footers is not False:
            footer = cursor.take(stream.SectionFooter)
            self._footers, self._step = True, self._part
            if footer.section_id != section_id:
                message = f"footer of section id {footer.section_id}, not {section_id}"
                raise StreamError(message, offset=start)
            return [events.Footer(start, section_id)]
        if self._footers or kind not in self._parts():
            raise StreamError(f"byte {kind:#04x} where a section's footer stands", offset=start)
        noticed, self._footers, self._step = self._footers is None, False, self._part
        return [events.NoFooters(start)] if noticed else []

    def _device(self, cursor: Cursor) -> list[events.Event]:
        assert self._section is not None
        start, header, name = self._section
        end, found = devices.find_end(cursor, header.section_id, self._known)
        self._collect(cursor, end)
        if not found:
            raise Incomplete
        payload = bytes(self._collected)
        payload_offset = cursor.offset - len(payload)
        cursor.take(stream.SectionFooter)
        self._step = self._part
        ids = (header.section_id, name, header.instance_id, header.version)
        event = events.DeviceSection(start, *ids, payload, payload_offset)
        self._ending.note(event)
        behind_ram = self._ram.ended and not self._open
        return self._ending.hold(event) if behind_ram else [event]

    def _collect(self, cursor: Cursor, end: int) -> None:
        size = len(self._collected) + end - cursor.position + self._ending.size
        if size > self._max_section:
            message = f"more than {self._max_section} bytes without the end of a section"
            raise StreamError(message, offset=cursor.offset)
        cursor.absorb(self._collected, end)

    def _command(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        command = cursor.take(stream.Command)
        said = read_command(command.command, command.data, start)
        if command.command == CommandType.POSTCOPY_ADVISE and said is not None:
            blocks = self._ram.block_list
            blocks.postcopy = True
            if not blocks.page_size_said:
                blocks.page_size = checked_page_size(said.page_size, start)
                blocks.page_size_said = True
        elif command.command == CommandType.POSTCOPY_RAM_DISCARD:
            for lost in said.ranges:
                name = said.block.decode(errors="replace")
                self._ram.check_inside(name, lost.start, lost.length, start)
        elif command.command == CommandType.PACKAGED:
            if self._package_end is not None:
                raise StreamError("a package within a package", offset=start)
            self._package_end = cursor.offset + said.length
        event = events.Command(start, command.command, command.data)
        return self._ending.hold(event) if self._ending.held else [event]

    def _eof(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        if self._open:
            section, _ = next(iter(self._open.values()))
            message = f"the stream ends before its section {section.name!r} does"
            raise StreamError(message, offset=start)
        if self._package_end is not None:
            raise StreamError("the stream ends within a package", offset=start)
        cursor.take(stream.EndOfStream)
        self._step = self._after_eof
        event = events.EndOfStream(start)
        return self._ending.hold(event) if self._ending.held else [event]

    def _after_eof(self, cursor: Cursor) -> list[events.Event]:
        if cursor.peek() != SectionType.VMDESCRIPTION:
            # Not ours: a stream may stand inside something else.
            self.finished = True
            return self._ending.release()
        start = cursor.offset
        header = cursor.take(stream.DescriptionHeader)
        if header.length > self._max_section:
            raise StreamError(f"a description of {header.length} bytes", offset=start)
        self._section = (start, header, "description")
        self._collected = bytearray()
        self._step = self._description
        return []

    def _description(self, cursor: Cursor) -> list[events.Event]:
        assert self._section is not None
        start, header, _ = self._section
        text = cursor.gather(self._collected, header.length)
        description = read_description(text, start, self.page_size)
        self.finished = True
        self._section = None
        return self._ending.confirm(description)

    # The tail is only collected: the description alone can tell what it is.

    def _tail(self, cursor: Cursor) -> list[events.Event]:
        if self._step != self._tail:
            self._collected = bytearray()
            self._step = self._tail
        self._collect(cursor, len(cursor.view))
        raise Incomplete

    def _doubt(self, cursor: Cursor, error: StreamError) -> None:
        """What was held back makes no sense at last: the search for footers was misled."""
        self._error = error
        self._collected = bytearray(self._uncertain())
        self._step = self._tail
        cursor.position = cursor.done
        self._collect(cursor, len(cursor.view))

    def _uncertain(self) -> bytes:
        """All held back, and what was collected of the next section, as on the wire."""
        raw = self._ending.raw()
        if self._step == self._device and self._section is not None:
            start, header, name = self._section
            ids = (header.section_id, name, header.instance_id, header.version)
            cut = events.DeviceSection(start, *ids, bytes(self._collected), footer=False)
            raw += StreamWriter().write(cut)
        return raw

    def _resolve_tail(self, view: memoryview, done: int) -> list[events.Event]:
        """If the bytes at hand may be the last, try the description."""
        uncertain = self._step == self._device and self._ending.held
        if bytes(view[-1:]) != b"}" or not (uncertain or self._step == self._tail):
            return []
        raw = self._uncertain() if uncertain else bytes(self._collected)
        raw += bytes(view[done:])
        start = self._offset + len(view) - len(raw)
        found = devices.split_tail(raw, start, footers=self._footers is not False)
        if found is None:
            return []
        sections, eof, description = found
        check_page_size(description.json, description.offset, self.page_size)
        self.finished = True
        self._ending.release()
        return [*sections, eof, description]
