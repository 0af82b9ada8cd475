"""Reads a stream, in pieces of any size, and gives its events; does no I/O.

The reader is a state machine: `_step` is the method that reads what comes next. Each step takes one
whole part from the cursor and returns its events, or raises Incomplete.

The end of a device section is found by its footer (see `devices`). Sections behind RAM are held
back until the description confirms their lengths, or the stream ends without one.
Nothing read is trusted: what is wrong raises StreamError, with its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from . import devices, events, stream
from .configuration import IGNORE_SHARED, checked_page_size, read_configuration
from .cursor import Cursor, Incomplete, decode_name
from .errors import StreamError, UnsupportedError
from .ram_reader import RamReader
from .stream import CommandType, SectionType
from .writer import StreamWriter

_Step = Callable[[Cursor], list[events.Event]]

_COMMAND_LENGTHS = {
    CommandType.OPEN_RETURN_PATH: 0,
    CommandType.PING: 4,
    CommandType.SWITCHOVER_START: 0,
}
"""Bytes of data of the commands that are obeyed."""
_UNSUPPORTED_COMMANDS = frozenset(
    {
        CommandType.POSTCOPY_LISTEN,
        CommandType.POSTCOPY_RUN,
        CommandType.POSTCOPY_RAM_DISCARD,
        CommandType.PACKAGED,
        CommandType.ENABLE_COLO,
        CommandType.POSTCOPY_RESUME,
        CommandType.RECV_BITMAP,
    }
)


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
        self._step: _Step = self._header
        self._offset = 0
        self._rest = b""
        self._collected = bytearray()
        self._section: tuple[int, Any, str] | None = None
        self._held: list[events.Event] = []
        self._held_size = 0
        self._devices: list[events.DeviceSection] = []
        self._error: StreamError | None = None
        self.finished = False

    @property
    def page_size(self) -> int:
        """Bytes of a page, as far as known by now."""
        return self._ram.page_size

    @property
    def awaiting_description(self) -> bool:
        """The stream may end here; only a description may follow, or nothing."""
        return not self.finished and (
            self._step in (self._after_eof, self._description, self._collect_tail)
            or (self._step == self._device and self._known.open_id is None and self._ends_in_eof())
        )

    def _ends_in_eof(self) -> bool:
        assert self._section is not None
        return self._rest == stream.section_footer(self._section[1].section_id) + b"\0"

    def parse(self, view: memoryview) -> tuple[list[events.Event], int]:
        """The events in `view`, and how many of its bytes are done with.

        The caller presents the rest again, with more behind it; it is short: part of one page
        record, or of one structure. Page data of the events are views on `view`.
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
            if not self._held or self._step == self._description:
                raise
            self._doubt(cursor, error)
        resolved = self._resolve_doubt(view, cursor.done)
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
        if self._error is not None and not self.finished:
            raise self._error
        if not self.finished and (self._step != self._after_eof or self._rest):
            where = self._step.__name__.strip("_").replace("_", " ")
            raise StreamError(
                f"the stream ends early, in: {where}",
                offset=self._offset + len(self._rest),
                section=None if self._section is None else self._section[2],
            )
        self.finished = True
        return found + self._release(self._held)

    # A device's state may hold what looks like its footer and a next section. The search is misled
    # then, and what follows makes no sense; the description still tells where sections end.

    def _doubt(self, cursor: Cursor, error: StreamError) -> None:
        """From here on only collect."""
        self._error = error
        self._collected = bytearray(self._tail())
        self._step = self._collect_tail
        cursor.position = cursor.done
        self._collect(cursor, len(cursor.view))

    def _collect_tail(self, cursor: Cursor) -> list[events.Event]:
        self._collect(cursor, len(cursor.view))
        raise Incomplete

    def _tail(self) -> bytes:
        """All held back, and what was collected of the next section, as on the wire."""
        if self._step == self._collect_tail:
            return bytes(self._collected)
        held = list(self._held)
        if self._step == self._device and self._section is not None:
            start, header, name = self._section
            ids = (header.section_id, name, header.instance_id, header.version)
            held.append(events.DeviceSection(start, *ids, bytes(self._collected), footer=False))
        return b"".join(map(StreamWriter().write, held))

    def _resolve_doubt(self, view: memoryview, done: int) -> list[events.Event]:
        """If the bytes at hand may be the last, try the description."""
        if not self._in_doubt or bytes(view[-1:]) != b"}":
            return []
        tail = self._tail() + bytes(view[done:])
        found = devices.split_tail(tail, self._held[0].offset)
        if found is None:
            return []
        sections, eof, description = found
        self._checked_description(description.text, description.offset)
        self.finished = True
        return [*self._release([*sections, eof]), description]

    @property
    def _in_doubt(self) -> bool:
        return bool(self._held) and self._step in (self._device, self._collect_tail)

    # The steps, in the order of a stream.

    def _header(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        header = cursor.take(stream.FileHeader)
        if header.magic != stream.MAGIC:
            raise StreamError("not a migration stream: no QEVM at its start", offset=start)
        if header.version != stream.VERSION:
            raise UnsupportedError(f"stream version {header.version}", offset=start + 4)
        self._step = self._configuration
        return [events.Header(start, header.version)]

    def _configuration(self, cursor: Cursor) -> list[events.Event]:
        if cursor.peek() != SectionType.CONFIGURATION:
            self._step = self._part
            return []
        event = read_configuration(cursor)
        if event.page_size is not None:
            self._ram.page_size = event.page_size
            self._ram.page_size_said = True
        self._ram.addressed = IGNORE_SHARED in (event.capabilities or ())
        self._step = self._part
        return [event]

    def _part(self, cursor: Cursor) -> list[events.Event]:
        """Whatever the next byte says that comes next."""
        self._section = None
        kind = cursor.peek()
        read = self._parts().get(kind)
        if read is None:
            raise StreamError(f"byte {kind:#04x} where a section begins", offset=cursor.offset)
        return read(cursor)

    def _parts(self) -> dict[int, _Step]:
        return {
            SectionType.EOF: self._eof,
            SectionType.START: self._section_header,
            SectionType.FULL: self._section_header,
            SectionType.PART: self._ram_continuation,
            SectionType.END: self._ram_continuation,
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
        event = self._ram.start(start, header, name)
        self._known.open_id = header.section_id
        self._step = self._ram_records
        return [event]

    def _ram_continuation(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        header = cursor.take(stream.SectionContinuation)
        if header.section_id != self._known.open_id:
            message = f"section id {header.section_id} goes on, but was not begun or has ended"
            raise StreamError(message, offset=start)
        event = self._ram.go_on(start, header)
        self._section = (start, header, event.name)
        self._step = self._ram_records
        return [event]

    def _ram_records(self, cursor: Cursor) -> list[events.Event]:
        passed = self._ram.pass_seam(cursor)
        if passed:
            return passed
        event = self._ram.read(cursor)
        if isinstance(event, events.EndOfRam):
            self._step = self._ram_footer
        return [] if event is None else [event]

    def _ram_footer(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        if cursor.peek() != SectionType.FOOTER:
            message = "sections without footers (very old machine types) are not supported"
            raise UnsupportedError(message, offset=start)
        footer = cursor.take(stream.SectionFooter)
        if footer.section_id != self._known.open_id:
            message = f"footer of section id {footer.section_id}, not {self._known.open_id}"
            raise StreamError(message, offset=start)
        if self._ram.ended:
            self._known.open_id = None
        self._step = self._part
        return [events.Footer(start, footer.section_id)]

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
        event = events.DeviceSection(
            start,
            header.section_id,
            name,
            header.instance_id,
            header.version,
            payload,
            payload_offset,
        )
        self._devices.append(event)
        return self._hold(event) if self._ram.ended else [event]

    def _collect(self, cursor: Cursor, end: int) -> None:
        size = len(self._collected) + end - cursor.position + self._held_size
        if size > self._max_section:
            message = f"more than {self._max_section} bytes without the end of a section"
            raise StreamError(message, offset=cursor.offset)
        cursor.absorb(self._collected, end)

    def _command(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        command = cursor.take(stream.Command)
        if command.command not in list(CommandType):
            raise StreamError(f"unknown command {command.command}", offset=start)
        if command.command in _UNSUPPORTED_COMMANDS:
            name = CommandType(command.command).name
            raise UnsupportedError(f"command {name} is not supported", offset=start)
        length = _COMMAND_LENGTHS.get(command.command, len(command.data))
        if len(command.data) != length:
            message = f"a {CommandType(command.command).name} command of {len(command.data)} bytes"
            raise StreamError(message, offset=start)
        if command.command == CommandType.POSTCOPY_ADVISE and command.data:
            self._advised(command.data, start)
        event = events.Command(start, command.command, command.data)
        return self._hold(event) if self._held else [event]

    def _advised(self, data: bytes, start: int) -> None:
        """Postcopy of RAM may follow; without data, only that of dirty bitmaps."""
        try:
            advice = stream.PostcopyAdvice.parse(data)
        except stream.DeclarationError:
            message = f"a POSTCOPY_ADVISE command of {len(data)} bytes"
            raise StreamError(message, offset=start) from None
        self._ram.postcopy = True
        if not self._ram.page_size_said:
            self._ram.page_size = checked_page_size(advice.page_size, start)
            self._ram.page_size_said = True

    def _eof(self, cursor: Cursor) -> list[events.Event]:
        start = cursor.offset
        if self._known.open_id is not None:
            raise StreamError("the stream ends before its section 'ram' does", offset=start)
        cursor.take(stream.EndOfStream)
        self._step = self._after_eof
        event = events.EndOfStream(start)
        return self._hold(event) if self._held else [event]

    def _after_eof(self, cursor: Cursor) -> list[events.Event]:
        if cursor.peek() != SectionType.VMDESCRIPTION:
            # Not ours: a stream may stand inside something else.
            self.finished = True
            return self._release(self._held)
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
        missing = header.length - len(self._collected)
        cursor.absorb(self._collected, cursor.position + missing)
        if len(self._collected) < header.length:
            raise Incomplete
        text = bytes(self._collected)
        description = self._checked_description(text, start)
        self.finished = True
        self._section = None
        raw = b"".join(StreamWriter().write(event) for event in self._held[:-1])
        try:
            lengths = devices.described_lengths(description)
        except ValueError as error:
            raise StreamError(str(error), offset=start) from None
        settled = devices.settle(self._held, self._devices, lengths, raw)
        return [*self._release(settled), events.Description(start, text, description)]

    def _checked_description(self, text: bytes, start: int) -> dict[str, Any]:
        try:
            description = json.loads(text)
        except (ValueError, RecursionError) as error:
            message = f"the description is not JSON: {error}"
            raise StreamError(message, offset=start) from None
        if not isinstance(description, dict):
            raise StreamError("the description is not a JSON object", offset=start)
        page_size = description.get("page_size", self.page_size)
        if page_size != self.page_size:
            message = (
                f"pages have {page_size} bytes by the description, were read as {self.page_size}"
            )
            raise StreamError(message, offset=start)
        return description

    # Events held back until the end.

    def _hold(self, event: events.Event) -> list[events.Event]:
        self._held.append(event)
        if isinstance(event, events.DeviceSection):
            self._held_size += len(event.payload)
        return []

    def _release(self, found: list[events.Event]) -> list[events.Event]:
        self._held = []
        return found
