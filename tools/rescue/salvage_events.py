"""Yields the events of a damaged stream: those before the damage, then those found after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from ...protocol import events
from ...protocol.errors import CutError, StreamError
from ...protocol.rescue.damage import Damage, Salvaged
from ...protocol.rescue.failure import Failure, Progress
from ...protocol.rescue.salvage import Salvage
from ...protocol.rescue.tail import Tail, find_tail
from ...protocol.wire.stream import FOOTER_SIZE
from ..sources.spool import spooled
from ..sources.stream_events import USUALLY, Behind, Found, How, Reading, mapped_pages
from .survey import Survey


class Salvager:
    """A reader of a stream that may be damaged; at the end, `survey` has the fate of its pages and
    devices.

    `error` is the first error, or None.
    """

    def __init__(self, stream: BinaryIO, survey: Survey, how: How = USUALLY) -> None:
        self._stream = stream if stream.seekable() else spooled(stream)
        self._start = self._stream.tell()
        self._survey = survey
        self._reading = Reading(self._stream, how, on_missing=survey.miss)
        self._reader = self._reading.reader
        self._progress = Progress(0)
        self._seen: list[tuple[str, int]] = []
        self._ram_end: int | None = None
        """The offset at which the last section that was read ended."""
        self.error: StreamError | None = None

    def read(self) -> Iterator[Salvaged | Found]:
        """Yield all events that can be read. Raises StreamError if there are none; OSError."""
        found = self._reading.all_events()
        try:
            for event in found:
                if not isinstance(event, Behind):
                    self._note(event)
                yield event
        except StreamError as error:
            self.error = error
        if self.error is None:
            return
        yield from self._salvage(self._progress.failure(self.error))

    def _note(self, event: events.Event) -> None:
        self._progress.take(event)
        if isinstance(event, events.DeviceSection):
            self._seen.append((event.name, event.instance_id))
            size = len(event.payload) + (FOOTER_SIZE if event.footer else 0)
            self._ram_end = event.payload_offset + size
        elif isinstance(event, events.Footer):
            self._ram_end = event.offset + FOOTER_SIZE

    def _salvage(self, failure: Failure) -> Iterator[Salvaged]:
        ram = self._reader.ram
        if not ram.block_list.complete:
            yield from self._salvage_list()
            yield Damage(failure.offset, self._size(), failure.message, None, in_ram=False)
        elif not ram.ended or self._reader.open_sections:
            yield from self._salvage_ram(failure)
            return
        else:
            end = max(failure.offset, self._ram_end or 0)
            yield Damage(failure.offset, end, failure.message, None, in_ram=False)
        yield from self._found(self._tail(self._ram_end if ram.ended else None))

    def _salvage_list(self) -> Iterator[Salvaged]:
        """Yield the blocks that a mapped-ram file lists before the damage, and their pages.

        Raises the first error if there are none.
        """
        assert self.error is not None
        blocks = self._reader.ram.block_list
        if not blocks.blocks or not blocks.mapped:
            raise self.error
        listed = blocks.so_far()
        self._survey.result.unlisted = listed.total - sum(b.length for b in listed.blocks)
        self._survey.result.ram_ends = False
        yield listed
        yield from mapped_pages(self._stream, self._start, listed, self._survey.miss)
        if not isinstance(self.error, CutError):
            self._survey.doubt_block(len(listed.blocks) - 1)

    def _salvage_ram(self, failure: Failure) -> Iterator[Salvaged]:
        blocks = self._reader.ram.block_list
        if blocks.mapped and not isinstance(self.error, CutError) and failure.before is None:
            self._survey.doubt_block(len(blocks.blocks) - 1)
        tail = self._tail(None)
        salvage = Salvage(
            self._read_at,
            self._size(),
            ram=self._reader.ram,
            sections=self._reader.open_sections,
            ram_end=tail.start,
            arrived=self._survey.arrived,
            footers=self._reader.has_footers,
        )
        yield from salvage.read(failure)
        if salvage.behind_ram is None:
            self._survey.result.ram_ends = False
        elif salvage.behind_ram != tail.start:
            tail = self._tail(salvage.behind_ram)
        yield from self._found(tail)

    def _tail(self, start: int | None) -> Tail:
        footers = self._reader.has_footers
        return find_tail(self._read_at, self._size(), start, self._seen, footers=footers)

    def _found(self, tail: Tail) -> Iterator[Salvaged]:
        self._survey.result.described = tail.confirmed
        self._survey.result.lost = tail.lost
        yield from tail.found

    def _read_at(self, position: int, size: int) -> bytes:
        self._stream.seek(self._start + position)
        # Damaged compressed data raises an error after its sound bytes, so do not read past these.
        size = max(0, min(size, self._size() - position))
        self._stream.seek(self._start + position)
        return self._stream.read(size)

    def _size(self) -> int:
        return self._stream.seek(0, os.SEEK_END) - self._start
