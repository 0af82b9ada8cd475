"""Read the records of RAM from any place on, and the sections between its pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import TypeAlias

from .. import events
from ..errors import CutError, StreamError
from ..reading.ram_reader import RamReader
from ..sections.registry import SectionReader
from ..wire import stream
from ..wire.cursor import Cursor, Incomplete
from ..wire.marks import SectionType
from ..wire.stream import FOOTER_SIZE
from .failure import Failure, Progress
from .tail import ReadAt

PIECE = 4 << 20
"""Bytes that are read at once; more than any record has."""
UNKNOWN = -1
"""The index of a block that is not known."""

_Step: TypeAlias = Callable[[Cursor], Sequence[events.Event]]
Sections: TypeAlias = dict[int, tuple[events.IterativeSection, SectionReader]]
"""The iterative sections that have not ended, with their readers, by section id."""


class First(Enum):
    """The part of a stream at which reading begins."""

    RECORD = auto()
    FOOTER = auto()
    PART = auto()


class Walk:
    """Reader of events from any place in `ram` on.

    `read_at`: reads the stream, with corrections applied; `end`: where reading ends at the latest;
    `ram`: the reader of `ram`, whose list of blocks is complete; `sections`: all open sections,
    with `ram`; `unknown`: the block whose pages get the index UNKNOWN; `footers`: whether sections
    have them.
    """

    def __init__(
        self,
        read_at: ReadAt,
        end: int,
        ram: RamReader,
        sections: Sections,
        unknown: events.RamBlock,
        *,
        footers: bool,
    ) -> None:
        assert ram.section is not None
        self._read_at = read_at
        self._end = end
        self._ram = ram
        self._sections = sections
        self._footers = footers
        self._section_id = ram.section.section_id
        self.unknown = unknown
        ram.block_list.indexes[unknown.name] = UNKNOWN
        self._current = sections[self._section_id]
        self._steps: dict[First, _Step] = {
            First.RECORD: self._records,
            First.FOOTER: self._footer,
            First.PART: self._part,
        }
        self._step = self._steps[First.RECORD]
        self.failure: Failure | None = None
        """The damage at which the last walk stopped, or None."""
        self.behind_ram: int | None = None
        """Position of the first section after RAM, if the last walk got that far."""

    def read(
        self, position: int, block: events.RamBlock, first: First = First.RECORD
    ) -> Iterator[events.Event]:
        """Yield the events from `position` on, up to damage (`failure`) or the end of `ram`.

        `block`: the one that records without a name continue; `first`: the part at `position`.
        """
        self._ram.resume(block)
        self._current = self._sections[self._section_id]
        self._step, self.failure, self.behind_ram = self._steps[first], None, None
        progress = Progress(position)
        while position < self._end:
            view = memoryview(self._read_at(position, min(PIECE, self._end - position)))
            cursor = Cursor(view, position)
            found: list[events.Event] = []
            error: StreamError | None = None
            try:
                while self.behind_ram is None:
                    found += self._step(cursor)
                    cursor.commit()
            except Incomplete:
                pass
            except StreamError as failed:
                error = failed
            for event in found:
                progress.take(event)
                yield event
            if self.behind_ram is not None:
                return
            ended = not cursor.done and error is None
            if ended:
                message = "the stream ends early, in: records"
                error = CutError(message, offset=position + len(view))
            if error is not None:
                self.failure = progress.failure(error)
                return
            position += cursor.done

    # The steps, like those of the reader.

    def _records(self, cursor: Cursor) -> Sequence[events.Event]:
        reading = self._current[1]
        found = reading.read(cursor)
        if reading.at_end:
            self._step = self._footer if self._footers else self._part
        return found

    def _footer(self, cursor: Cursor) -> Sequence[events.Event]:
        start, section_id = cursor.offset, self._current[0].section_id
        cursor.peek(FOOTER_SIZE - 1)
        if cursor.view[cursor.position :][:FOOTER_SIZE] != stream.section_footer(section_id):
            raise StreamError("no footer behind a section", offset=start)
        cursor.position += FOOTER_SIZE
        self._step = self._part
        return [events.Footer(start, section_id)]

    def _part(self, cursor: Cursor) -> Sequence[events.Event]:
        start = cursor.offset
        if start >= self._end:
            self.behind_ram = start
            return []
        kind = cursor.peek()
        if kind == SectionType.COMMAND:
            # Commands are for the other end of a channel.
            cursor.take(stream.Command)
            return []
        if kind in (SectionType.FULL, SectionType.EOF):
            self.behind_ram = start
            return []
        if kind not in (SectionType.PART, SectionType.END):
            raise StreamError(f"byte {kind:#04x} where a section begins", offset=start)
        header = cursor.take(stream.SectionContinuation)
        if header.section_id not in self._sections:
            message = f"section id {header.section_id} goes on, but was not begun or has ended"
            raise StreamError(message, offset=start)
        self._current = self._sections[header.section_id]
        section, reading = self._current
        reading.begin(SectionType(kind))
        self._step = self._records
        return [replace(section, offset=start, kind=SectionType(kind))]
