"""Read a stream, in pieces of any size, and return its events, without I/O.

The reader is a state machine: `_step` is the method that reads the next part. Each step takes one
whole part from the cursor and returns its events, or raises Incomplete. `reading` has a module for
each kind of part, and iterative sections have readers of their own (see `sections`), one of which
is active at a time.

From the first device section after RAM on, or from an EOF, all bytes are kept until the caller
reports that the input has ended (`close`): only then is it known where sections and the stream end,
and `devices.ending` decides it. No input is trusted: invalid data raises StreamError with its
position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import events
from .devices.ending import Ending
from .errors import CutError, StreamError
from .reading.command_reader import CommandReader
from .reading.configuration import IGNORE_SHARED, MAPPED_RAM, read_configuration
from .reading.early_devices import EarlyDevices
from .reading.footer_reader import FooterReader
from .reading.header import read_header
from .reading.kept_rest import KeptRest
from .reading.ram_reader import RamReader
from .reading.section_table import SectionStart, SectionTable
from .sections.registry import SectionReader
from .wire.cursor import Cursor, Incomplete
from .wire.kept import Kept, KeptInMemory
from .wire.marks import DEFAULT_PAGE_SIZE, SectionType
from .wire.ram import SECTION_NAME

MAX_IN_MEMORY = 64 << 20
"""Default limit for the device state that is kept in memory, in bytes."""

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
    of RAM that a stream may announce. `mixed`: whether plain and zero pages are returned as
    MixedRun, which takes less time where the kinds alternate, as soon as their headers are there.
    """

    def __init__(
        self,
        *,
        page_size: int = DEFAULT_PAGE_SIZE,
        described_page_size: Callable[[], int | None] | None = None,
        keep: Callable[[], Kept] = KeptInMemory,
        keep_rest: Callable[[int], Kept] | None = None,
        max_device_state: int | None = MAX_IN_MEMORY,
        described_size: Callable[[int, int, str, int], int | None] | None = None,
        max_total_ram: int = 1 << 46,
        mixed: bool = False,
    ) -> None:
        self._keep_rest = keep_rest or (lambda _: keep())
        self._max_device_state = max_device_state
        self._described_page_size = described_page_size
        self._ram = RamReader(page_size, max_total_ram, mixed=mixed)
        self._sections = SectionTable(self._ram, keep, max_device_state)
        self._known = self._sections.known
        self._footers = FooterReader()
        self._commands = CommandReader(self._ram, self._known)
        self._early = EarlyDevices(self._known, keep, max_device_state, described_size)
        self._parts: dict[int, _Step] = {
            SectionType.EOF: self._end,
            SectionType.START: self._section_start,
            SectionType.FULL: self._device_start,
            SectionType.PART: self._continuation,
            SectionType.END: self._continuation,
            SectionType.COMMAND: self._command,
        }
        self._step: _Step = self._header
        self._offset = 0
        self._rest = b""
        self._content_end = 0
        self._section: SectionStart | events.IterativeSection | None = None
        self._reading: SectionReader = self._ram
        self._configured = False
        self.rest: KeptRest | None = None
        """The bytes from the first device section after RAM on, or from the EOF; None before it."""
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
        return self._sections.open

    @property
    def has_footers(self) -> bool:
        """Return whether sections end with footers, or True if that is not known yet."""
        return self._footers.likely

    @property
    def page_size(self) -> int:
        """Return the bytes of a page, as far as known by now."""
        return self._ram.page_size

    @property
    def position(self) -> int:
        """Return the position in the stream up to which everything was read."""
        return self._offset

    @property
    def behind(self) -> int:
        """Return how many kept bytes follow the end of the stream, once it is finished."""
        return 0 if self.rest is None else self.rest.end - self.end

    @property
    def whole(self) -> bool:
        """Return whether a description confirms that the stream ends with the last byte read."""
        return self.finished or (self.rest is not None and self.rest.whole())

    @property
    def to_skip(self) -> int:
        """Return how many of the next bytes the caller has to skip, as they are read elsewhere."""
        end = max(self._ram.block_list.gap_end, self._content_end)
        return 0 if self._rest else max(0, end - self._offset)

    def skip(self, count: int) -> None:
        """Skip the next `count` bytes, at most `to_skip`, without presenting them."""
        assert count <= self.to_skip
        self._offset += count

    def parse(self, view: memoryview, most: int | None = None) -> tuple[list[events.Event], int]:
        """Return the events in `view`, and how many of its bytes were used.

        The caller presents the rest again, followed by more bytes; it is short: part of one page
        record, or of one structure. With `most`, reading also stops once there are so many events;
        the rest may be long then. Page data of the events are views of `view`. A StreamError
        carries the events before it, as `found`.
        """
        passed = max(0, min(self._content_end - self._offset, len(view)))
        self._offset += passed
        view = view[passed:]
        cursor = Cursor(view, self._offset)
        found: list[events.Event] = []
        try:
            while not self.finished and (most is None or len(found) < most):
                found += self._step(cursor)
                cursor.commit()
        except Incomplete:
            pass
        except StreamError as error:
            if error.section is None and self._section is not None:
                error.section = self._section.name
            error.found = found
            raise
        used = min(cursor.done, len(view))
        # The content of the last page of a MixedRun may not have arrived yet.
        self._content_end = max(self._content_end, self._offset + cursor.done)
        self._offset += used
        self._rest = b"" if self.finished else bytes(view[used:])
        return found, passed + used

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
        if self.rest is None:
            where = self._step.__name__.strip("_").replace("_", " ")
            raise CutError(
                f"the stream ends early, in: {where}",
                offset=self._offset + len(self._rest),
                section=None if self._section is None else self._section.name,
            )
        return found + self._resolve(at_end=True)

    # The steps, in the order of a stream.

    def _header(self, cursor: Cursor) -> list[events.Event]:
        event = read_header(cursor)
        self._step = self._configuration
        return [event]

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
        self._commands.leave_package(cursor.offset)
        kind = cursor.peek()
        read = self._parts.get(kind)
        if read is None:
            raise StreamError(f"byte {kind:#04x} where a section begins", offset=cursor.offset)
        return read(cursor)

    def _section_start(self, cursor: Cursor) -> list[events.Event]:
        self._section = start = self._sections.read_start(cursor)
        if start.name == SECTION_NAME:
            self._ask_page_size()
        opened = self._sections.open_section(start, footers=self._footers.likely)
        return self._begin(*opened)

    def _ask_page_size(self) -> None:
        """Ask the description for the page size if nothing in the stream has announced it."""
        blocks = self._ram.block_list
        if self._described_page_size is not None and not blocks.page_size_said:
            blocks.page_size = self._described_page_size() or blocks.page_size

    def _continuation(self, cursor: Cursor) -> list[events.Event]:
        return self._begin(*self._sections.read_continuation(cursor))

    def _begin(
        self, section: events.IterativeSection, reading: SectionReader
    ) -> list[events.Event]:
        self._section, self._reading = section, reading
        reading.begin(section.kind)
        self._step = self._records
        return [section]

    def _records(self, cursor: Cursor) -> Sequence[events.Event]:
        found = self._reading.read(cursor)
        if self._reading.at_end:
            self._step = self._footer
        elif len(found) > 1:
            # More than one event: two pieces of `ram` were read with the footer between them.
            self._footers.present = True
        return found

    def _footer(self, cursor: Cursor) -> list[events.Event]:
        assert self._section is not None
        found = self._footers.read(cursor, self._section.section_id)
        self._step = self._part
        return found

    def _device_start(self, cursor: Cursor) -> list[events.Event]:
        if self._is_behind_ram():
            return self._end(cursor)
        self._section = start = self._sections.read_start(cursor)
        self._early.begin(start, cursor.offset)
        self._step = self._device
        return []

    def _is_behind_ram(self) -> bool:
        """Return whether a device section here follows all of RAM (those of a postcopy do not)."""
        if not (self._configured or self._ram.begun):
            # A machine whose stream has no configuration saves no devices before RAM. So this
            # stream holds devices alone, like those of Xen and COLO.
            return True
        return not self._footers.likely or (self._ram.ended and not self._commands.in_package)

    def _device(self, cursor: Cursor) -> list[events.Event]:
        event = self._early.read(cursor)
        self._step = self._part
        return [event]

    def _command(self, cursor: Cursor) -> list[events.Event]:
        return [self._commands.read(cursor)]

    def _end(self, cursor: Cursor) -> list[events.Event]:
        """Begin to keep all bytes, at the first device section after RAM or at the EOF."""
        start = cursor.offset
        if self._ram.begun and not self._ram.ended:
            message = f"the stream ends before its section {SECTION_NAME!r} does"
            raise StreamError(message, offset=start)
        if self._commands.in_package:
            raise StreamError("the stream ends within a package", offset=start)
        footers = self._footers.present
        ending = Ending(
            self._keep_rest(start),
            start,
            self._early.found,
            frozenset(self._known.ids),
            self.page_size,
            True if self._ram.begun and footers is None else footers,
        )
        self.rest = KeptRest(ending, self._max_device_state)
        self._step = self._keep_all
        return []

    def _keep_all(self, cursor: Cursor) -> list[events.Event]:
        """Keep the bytes at hand; at the limit of device state, find the end."""
        assert self.rest is not None
        self.rest.read(cursor)
        return self._resolve(at_end=False)

    def _resolve(self, *, at_end: bool) -> list[events.Event]:
        """Decide where sections and the stream end; `at_end`: the input has ended, too."""
        assert self.rest is not None
        ended = self.rest.resolve(at_end=at_end)
        self.finished, self.guessed = True, ended.guessed
        self.end = self.rest.offset + ended.end
        return ended.events
