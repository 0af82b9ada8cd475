"""Read a stream, in pieces of any size, and return its events, without I/O.

The reader is a state machine: `_step` is the method that reads the next part. Each step takes one
whole part from the cursor and returns its events, or raises Incomplete. Iterative sections have
readers of their own (see `sections`), one of which is active at a time.

From the first device section after RAM on, or from an EOF, all bytes are kept until the caller
reports that the input has ended (`close`): only then is it known where sections and the stream end,
and `devices.ending` decides it. No input is trusted: invalid data raises StreamError with its
position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import events
from .devices import section_ends
from .devices.ending import Ending
from .errors import CutError, StreamError, UnsupportedError
from .reading.configuration import IGNORE_SHARED, MAPPED_RAM, checked_page_size, read_configuration
from .reading.ram_reader import RamReader
from .sections.registry import SectionReader, reader_of
from .wire import stream
from .wire.commands import read_command
from .wire.cursor import Cursor, Incomplete, decode_name
from .wire.kept import Kept, KeptInMemory
from .wire.marks import MAGIC, VERSION, CommandType, SectionType
from .wire.multifd import MAGIC as MULTIFD_MAGIC
from .wire.ram import SECTION_NAME

MAX_IN_MEMORY = 64 << 20
"""Default limit for the device state that is kept in memory, in bytes."""

_FOOTER_SIZE: int = stream.SectionFooter.sizeof()

_Step = Callable[[Cursor], Sequence[events.Event]]


class StreamReader:
    """Reader of one stream, from its first byte to its end.

    `page_size`: bytes, used if the stream does not announce it before its pages;
    `described_page_size` is then asked first. `keep`: makes the places where device state is kept
    until its end is known, one for each section before RAM and one for everything after it;
    `keep_rest`, if given, makes the latter instead, from the position in the stream where it
    begins. `max_device_state`: bytes that each of them may hold, or None for no limit.
    `described_size`: returns the bytes of payload of a device section before RAM, given its
    payload's offset, section id, name and instance id, or None if unknown. `max_total_ram`: bytes
    of RAM that a stream may announce.
    """

    def __init__(
        self,
        *,
        page_size: int = 4096,
        described_page_size: Callable[[], int | None] | None = None,
        keep: Callable[[], Kept] = KeptInMemory,
        keep_rest: Callable[[int], Kept] | None = None,
        max_device_state: int | None = MAX_IN_MEMORY,
        described_size: Callable[[int, int, str, int], int | None] | None = None,
        max_total_ram: int = 1 << 46,
    ) -> None:
        self._keep = keep
        self._keep_rest = keep_rest or (lambda _: keep())
        self._max_device_state = max_device_state
        self._described_size = described_size
        self._described_page_size = described_page_size
        self._ram = RamReader(page_size, max_total_ram)
        self._known = section_ends.Known()
        self._open: dict[int, tuple[events.IterativeSection, SectionReader]] = {}
        self._step: _Step = self._header
        self._offset = 0
        self._rest = b""
        self._collected: Kept = keep()
        self._size: int | None = None
        self._section: tuple[int, Any, str] | None = None
        self._reading: SectionReader = self._ram
        self._footers: bool | None = None
        self._configured = False
        self._package_end: int | None = None
        self._early: list[events.DeviceSection] = []
        self._ending: Ending | None = None
        self.finished = False
        """True once the end is known: by `close`, or when the limit of device state is reached."""
        self.end = 0
        """The position in the stream after its last byte, valid once `finished` is True."""
        self.guessed = False
        """True if the stream may end before `end`, valid once `finished` is True.

        Nothing in the stream says where it ends then: see `devices.ending`.
        """

    @property
    def ram(self) -> RamReader:
        """Return the reader of the `ram` section, whose state is needed to resume after damage."""
        return self._ram

    @property
    def open_sections(self) -> dict[int, tuple[events.IterativeSection, SectionReader]]:
        """Return the iterative sections that have not ended, by section id."""
        return self._open

    @property
    def has_footers(self) -> bool:
        """Return whether sections end with footers, or True if that is not known yet."""
        return self._footers is not False

    @property
    def page_size(self) -> int:
        """Return the bytes of a page, as far as known by now."""
        return self._ram.page_size

    @property
    def keeping_from(self) -> int | None:
        """Return the position in the stream from which all bytes are kept, None before it."""
        return None if self._ending is None else self._ending.offset

    @property
    def kept(self) -> Kept:
        """Return the bytes kept from `keeping_from` on; the caller may append to them itself."""
        assert self._ending is not None
        return self._ending.kept

    @property
    def position(self) -> int:
        """Return the position in the stream up to which everything was read."""
        return self._offset

    @property
    def behind(self) -> int:
        """Return how many kept bytes follow the end of the stream, once it is finished."""
        if self._ending is None:
            return 0
        return self._ending.offset + self._ending.kept.size - self.end

    @property
    def whole(self) -> bool:
        """Return whether a description confirms that the stream ends with the last byte read."""
        return self.finished or (self._ending is not None and self._ending.whole())

    @property
    def bare(self) -> bool:
        """Return whether the stream may end here with no description to confirm it.

        The check scans all device state.
        """
        return self._ending is not None and self._ending.bare()

    @property
    def to_skip(self) -> int:
        """Return how many of the next bytes the caller has to skip, as they are read elsewhere."""
        return 0 if self._rest else max(0, self._ram.block_list.gap_end - self._offset)

    def skip(self, count: int) -> None:
        """Skip the next `count` bytes, at most `to_skip`, without presenting them."""
        assert count <= self.to_skip
        self._offset += count

    def parse(self, view: memoryview) -> tuple[list[events.Event], int]:
        """Return the events in `view`, and how many of its bytes were used.

        The caller presents the rest again, followed by more bytes; it is short: part of one page
        record, or of one structure. Page data of the events are views of `view`. A StreamError
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
            error.found = found
            raise
        self._offset += cursor.done
        self._rest = b"" if self.finished else bytes(view[cursor.done :])
        return found, cursor.done

    def feed(self, data: bytes | bytearray | memoryview) -> list[events.Event]:
        """Return the events in the next piece of the stream, of any size; `data` is copied."""
        return self.parse(memoryview(b"".join((self._rest, data))))[0]

    def close(self) -> list[events.Event]:
        """Return the last events, once the input has ended.

        Raises StreamError if the stream is not complete. Kept bytes from `end` on are not part of
        the stream.
        """
        if self.finished:
            return []
        self._known.at_end = True
        found = self.feed(b"")
        if self._ending is None:
            where = self._step.__name__.strip("_").replace("_", " ")
            raise CutError(
                f"the stream ends early, in: {where}",
                offset=self._offset + len(self._rest),
                section=None if self._section is None else self._section[2],
            )
        return found + self._resolve(at_end=True)

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
        event, self._configured = read_configuration(cursor), True
        blocks, capabilities = self._ram.block_list, event.capabilities or ()
        if event.page_size is not None:
            blocks.page_size, blocks.page_size_said = event.page_size, True
        blocks.addressed = IGNORE_SHARED in capabilities
        blocks.mapped = MAPPED_RAM in capabilities
        self._step = self._part
        return [event]

    def _part(self, cursor: Cursor) -> Sequence[events.Event]:
        """Read the part that the next byte announces."""
        self._section = None
        if self._package_end is not None and cursor.offset >= self._package_end:
            if cursor.offset > self._package_end:
                message = f"the package before ended at {self._package_end:#x}, within a section"
                raise StreamError(message, offset=cursor.offset)
            self._package_end, self._known.in_package = None, False
        kind = cursor.peek()
        read = self._parts().get(kind)
        if read is None:
            raise StreamError(f"byte {kind:#04x} where a section begins", offset=cursor.offset)
        return read(cursor)

    def _parts(self) -> dict[int, _Step]:
        return {
            SectionType.EOF: self._end,
            SectionType.START: self._section_header,
            SectionType.FULL: self._end if self._behind_ram() else self._section_header,
            SectionType.PART: self._continuation,
            SectionType.END: self._continuation,
            SectionType.COMMAND: self._command,
        }

    def _behind_ram(self) -> bool:
        """Return whether a device section here follows all of RAM (those of a postcopy do not)."""
        if not (self._configured or self._ram.begun):
            # A machine whose stream has no configuration saves no devices before RAM. So this
            # stream holds devices alone, like those of Xen and COLO.
            return True
        return self._footers is False or (self._ram.ended and self._package_end is None)

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
            self._collected, self._size = self._keep(), None
            if self._described_size is not None:
                of = (header.section_id, name, header.instance_id)
                self._size = self._described_size(cursor.offset, *of)
            self._step = self._device
            return []
        ids = (header.section_id, name, header.instance_id, header.version)
        section = events.IterativeSection(start, SectionType.START, *ids)
        if name == SECTION_NAME:
            self._ask_page_size()
            section, self._reading = self._ram.start(section), self._ram
        else:
            self._reading = reader_of(
                section,
                self._known,
                footers=self._footers is not False,
                keep=self._keep,
                max_size=self._max_device_state,
            )
        self._open[header.section_id] = (section, self._reading)
        self._known.open_ids.add(header.section_id)
        return self._begin(section)

    def _ask_page_size(self) -> None:
        """Ask the description for the page size if nothing in the stream has announced it."""
        blocks = self._ram.block_list
        if self._described_page_size is not None and not blocks.page_size_said:
            blocks.page_size = self._described_page_size() or blocks.page_size

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
        return self._begin(replace(section, offset=start, kind=kind))

    def _begin(self, section: events.IterativeSection) -> list[events.Event]:
        self._reading.begin(section.kind)
        self._step = self._records
        return [section]

    def _records(self, cursor: Cursor) -> Sequence[events.Event]:
        found = self._reading.read(cursor)
        if self._reading.at_end:
            self._step = self._footer
        elif len(found) > 1:
            # More than one event: two pieces of `ram` were read with the footer between them.
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
        """Read a device section before RAM, or in the package of a postcopy."""
        assert self._section is not None
        start, header, name = self._section
        if self._size is None:
            end, found = section_ends.find_end(cursor, header.section_id, self._known)
        else:
            end = cursor.position + self._size - self._collected.size
            found = end <= len(cursor.view)
        self._collect(cursor, end)
        if not found:
            raise Incomplete
        size = self._collected.size
        footer = cursor.take(stream.SectionFooter)
        if footer.section_id != header.section_id:
            message = f"no footer behind the {size} bytes that are described"
            raise StreamError(message, offset=cursor.offset - size)
        self._step = self._part
        ids = (header.section_id, name, header.instance_id, header.version)
        place = cursor.offset - size - _FOOTER_SIZE
        event = events.DeviceSection(start, *ids, self._collected.part(0, size), place)
        self._early.append(event)
        return [event]

    def _collect(self, cursor: Cursor, end: int) -> None:
        """Keep everything up to the position `end`, as far as it has arrived."""
        end = min(end, len(cursor.view))
        self._check_size(self._collected.size + end - cursor.position, cursor.offset)
        if end > cursor.position:
            self._collected.append(cursor.view[cursor.position : end])
            cursor.position = end
        cursor.commit()

    def _check_size(self, size: int, offset: int) -> None:
        limit = self._max_device_state
        if limit is not None and size > limit:
            message = f"more than {limit} bytes of device state (--max-device-state)"
            raise StreamError(message, offset=offset)

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
            self._known.in_package = True
        return [events.Command(start, command.command, command.data)]

    def _end(self, cursor: Cursor) -> list[events.Event]:
        """Begin to keep all bytes, at the first device section after RAM or at the EOF."""
        start = cursor.offset
        if self._ram.begun and not self._ram.ended:
            message = f"the stream ends before its section {SECTION_NAME!r} does"
            raise StreamError(message, offset=start)
        if self._package_end is not None:
            raise StreamError("the stream ends within a package", offset=start)
        self._ending = Ending(
            self._keep_rest(start),
            start,
            self._early,
            frozenset(self._known.ids),
            self.page_size,
            True if self._ram.begun and self._footers is None else self._footers,
        )
        self._step = self._keep_all
        return []

    def _keep_all(self, cursor: Cursor) -> list[events.Event]:
        """Keep the bytes at hand, up to the limit of device state; at the limit, find the end."""
        assert self._ending is not None
        end, limit = len(cursor.view), self._max_device_state
        if limit is not None:
            end = min(end, cursor.position + self._ending.offset + limit - cursor.offset)
        self._ending.kept.append(cursor.view[cursor.position : end])
        cursor.position = end
        cursor.commit()
        if end == len(cursor.view):
            raise Incomplete
        return self._resolve(at_end=False)

    def _resolve(self, *, at_end: bool) -> list[events.Event]:
        """Decide where sections and the stream end; `at_end`: the input has ended, too."""
        assert self._ending is not None
        limit = self._max_device_state
        try:
            ended = self._ending.resolve()
        except StreamError:
            # The fault may only be that the rest is missing.
            if limit is not None:
                self._check_size(self._ending.kept.size + 1, self._ending.offset + limit)
            raise
        # Bytes that the caller keeps itself are not checked when they arrive.
        self._check_size(ended.end, self._ending.offset)
        if ended.guessed and not at_end:
            # The stream may end later than this.
            self._check_size(self._ending.kept.size + 1, self._ending.offset)
        self.finished, self.guessed = True, ended.guessed
        self.end = self._ending.offset + ended.end
        return ended.events
