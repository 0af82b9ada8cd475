"""Reads a stream, in pieces of any size, and gives its events; does no I/O.

The reader is a state machine: `_step` is the method that reads what comes next. Each step takes one
whole part from the cursor and returns its events, or raises Incomplete. Iterative sections have
readers of their own (see `sections`), of which one is at work at a time.

From the first device section behind RAM on, or from an EOF, all bytes are kept until the caller
says that the input has ended (`close`): only then is it known where sections and the stream end,
and `ending` says how. Nothing read is trusted: what is wrong raises StreamError, with its place.
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
"""Bytes of device state that are kept in memory, if the caller does not say otherwise."""

_FOOTER_SIZE: int = stream.SectionFooter.sizeof()

_Step = Callable[[Cursor], Sequence[events.Event]]


class StreamReader:
    """One stream from its first byte to its end.

    `page_size`: bytes, where the stream does not say before its pages come;
    `described_page_size` is asked then, and may know better. `keep`: makes the
    places where device state is kept until its end is known, one for each section before RAM and
    one for all behind it; `keep_rest` makes the latter, given the position in the stream where it
    begins, if it is another one. `max_device_state`: bytes that one of them may hold, None for any
    number. `described_size`: asked for the payload's bytes of a device section before RAM, given
    its payload's offset, section id, name and instance id; returns None where nobody can tell.
    `max_total_ram`: bytes of RAM that a stream may announce.
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
        """The stream is whole: `close` was called, or as much was kept as device state may have."""
        self.end = 0
        """The position in the stream behind its last byte, once it is finished."""
        self.guessed = False
        """Once it is finished: the stream may end before, and nothing tells. See `ending`."""

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
    def keeping_from(self) -> int | None:
        """The position in the stream from which all bytes are kept; None before it is reached."""
        return None if self._ending is None else self._ending.offset

    @property
    def kept(self) -> Kept:
        """What is kept from `keeping_from` on; the caller may put bytes there itself."""
        assert self._ending is not None
        return self._ending.kept

    @property
    def position(self) -> int:
        """The position in the stream up to which all was read."""
        return self._offset

    @property
    def behind(self) -> int:
        """Bytes that are kept and stand behind the end of the stream, once it is finished."""
        if self._ending is None:
            return 0
        return self._ending.offset + self._ending.kept.size - self.end

    @property
    def whole(self) -> bool:
        """Whether a description confirms that the stream ends with the last byte that came."""
        return self.finished or (self._ending is not None and self._ending.whole())

    @property
    def bare(self) -> bool:
        """Whether the stream may end here, but nothing confirms it: it has no description.

        It costs a look at all device state.
        """
        return self._ending is not None and self._ending.bare()

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
            error.found = found
            raise
        self._offset += cursor.done
        self._rest = b"" if self.finished else bytes(view[cursor.done :])
        return found, cursor.done

    def feed(self, data: bytes | bytearray | memoryview) -> list[events.Event]:
        """The events in the next piece of the stream, of any size. Copies what is fed."""
        return self.parse(memoryview(b"".join((self._rest, data))))[0]

    def close(self) -> list[events.Event]:
        """Return the last events: the input has ended. Raises StreamError if the stream has not.

        Of the kept bytes, those from `end` on are not of the stream.
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
        """Whatever the next byte says that comes next."""
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
        """Whether a device section here is behind all of RAM; those of a postcopy are not."""
        if not (self._configured or self._ram.begun):
            # No machine without a configuration saves devices before RAM: this is what Xen saves,
            # or COLO, devices alone.
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
        """Ask the description how large pages are, where nothing before it says so."""
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
        """A device section before RAM, or of a postcopy's package."""
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
        """Keep everything up to the position `end`, as far as it is here."""
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
        """The first device section behind RAM, or the EOF: from here on all is kept."""
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
        """Keep what is here. Device state does not go on beyond its limit: the end is before it."""
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
            # What is wrong may be that the rest is missing.
            if limit is not None:
                self._check_size(self._ending.kept.size + 1, self._ending.offset + limit)
            raise
        # What is kept where it was does not go by as it comes.
        self._check_size(ended.end, self._ending.offset)
        if ended.guessed and not at_end:
            # A later place may be the last one.
            self._check_size(self._ending.kept.size + 1, self._ending.offset)
        self.finished, self.guessed = True, ended.guessed
        self.end = self._ending.offset + ended.end
        return ended.events
