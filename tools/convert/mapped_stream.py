"""Converts a stream to a mapped-ram file, and a mapped-ram file to an ordinary stream.

Both conversions process events as they are read, so memory use does not grow with the guest. The
module `mapped_ram` in `protocol/` describes the layout of such a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ...protocol import events
from ...protocol.devices.description import with_capabilities
from ...protocol.pages.mapped_layout import place_blocks
from ...protocol.pages.mapped_pages import list_pieces
from ...protocol.reading.configuration import IGNORE_SHARED, MAPPED_RAM
from ...protocol.wire import mapped_ram
from ...protocol.wire.marks import CommandType, SectionType
from ...protocol.writer import StreamWriter
from ...transport.sparse import write_at
from ..console.failure import CommandError
from ..rebuild.block_file import BlockFile

ZERO_PAGES = 4096
"""The number of zero pages in one piece of an ordinary stream."""
_STEP = 1 << 20
"""The number of pages that are processed at once."""
_FOR_A_CHANNEL = {CommandType.OPEN_RETURN_PATH, CommandType.PING, CommandType.POSTCOPY_ADVISE}
"""The commands that need a live connection, and are left out of a file."""


class MappedError(CommandError):
    """Raised if the stream cannot be converted to a mapped-ram file; the message is one line."""


class MappedFile:
    """A writer of a stream's events to a mapped-ram file, given by its descriptor.

    `head` has the bytes before the stream. The file must be empty.
    """

    def __init__(self, fd: int, head: bytes = b"") -> None:
        self._fd = fd
        self._start = len(head)
        self._at = 0
        self._files: dict[str, BlockFile] = {}
        self._listed: events.RamBlocks | None = None
        self._capabilities: tuple[str, ...] = ()
        self._skipped = False
        """A flag that is set in a part of the `ram` section of which only pages are kept."""
        self._put(0, head)

    def take(self, event: events.Event) -> None:
        """Write the next event. Raises MappedError, StreamError, OSError."""
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            self._files[event.block.name].take(event)
        elif isinstance(event, events.RamSection):
            self._skipped = event.kind == SectionType.PART
            self._write(event)
        elif isinstance(event, events.RamBlocks):
            self._list(event)
        elif isinstance(event, events.Configuration):
            capable = _with(event, {*(event.capabilities or ()), MAPPED_RAM})
            self._capabilities = capable.capabilities or ()
            self._write(capable)
        elif isinstance(event, events.Description):
            self._write(_described(event, self._capabilities))
        elif isinstance(event, events.Command):
            self._command(event)
        elif not isinstance(event, events.MultifdFlush):
            self._write(event)

    def finish(self) -> int:
        """Write the bitmaps at the end of the stream, and return the stream's size in bytes."""
        if self._listed is None:
            raise MappedError("the stream has no RAM")
        for block in self._listed.blocks:
            if block.mapped is not None and block.mapped.present:
                self._write_bitmap(block.mapped, self._files[block.name])
        return self._at - self._start

    def _write(self, event: events.Event) -> None:
        if not self._skipped:
            self._put(self._at, StreamWriter().write(event))
        elif isinstance(event, events.Footer):
            self._skipped = False

    def _put(self, place: int, data: bytes) -> None:
        write_at(self._fd, data, place)
        self._at = max(self._at, place + len(data))

    def _command(self, event: events.Command) -> None:
        if event.command in (CommandType.PACKAGED, CommandType.POSTCOPY_LISTEN):
            raise MappedError("a postcopy's stream does not fit into a mapped-ram file")
        if event.command not in _FOR_A_CHANNEL:
            self._write(event)

    def _list(self, listed: events.RamBlocks) -> None:
        """Write the list of RAM blocks, and reserve a place for each block."""
        if not self._capabilities:
            raise MappedError("a mapped-ram file needs a configuration, the stream has none")
        for block in listed.blocks:
            left_out = block.mapped is not None and not block.mapped.present
            if block.may_be_absent and not left_out:
                message = f"with {IGNORE_SHARED}, only a mapped-ram file says which RAM is left out"
                raise MappedError(f"{message}: an ordinary stream of it cannot become one")
        moved = replace(listed, offset=self._at - self._start)
        self._listed, self._at = place_blocks(moved, self._start)
        for block in self._listed.blocks:
            if block.mapped is not None and block.mapped.present:
                places = [(0, block.mapped.pages_offset)]
                self._files[block.name] = BlockFile(
                    self._fd, block.length, listed.page_size, places
                )
        for place, piece in list_pieces(self._listed):
            write_at(self._fd, piece, self._start + place)
        os.ftruncate(self._fd, self._at)

    def _write_bitmap(self, mapped: mapped_ram.MappedRam, file: BlockFile) -> None:
        for start in range(0, len(file.written), _STEP):
            bits = np.packbits(file.written[start : start + _STEP], bitorder="little")
            self._put_inside(mapped.bitmap_offset + start // 8, bits)

    def _put_inside(self, place: int, data: npt.NDArray[np.uint8]) -> None:
        at = self._at
        self._put(place, data.tobytes())
        self._at = at


def plain_events(found: Iterable[events.Event]) -> Iterator[events.Event]:
    """Yield the events of an ordinary stream from those of a mapped-ram file, with explicit zero
    pages.
    """
    capabilities: tuple[str, ...] = ()
    section_id, seen = 0, _Seen()
    for event in found:
        if isinstance(event, events.Configuration):
            plain = _with(event, {*(event.capabilities or ())} - {MAPPED_RAM})
            capabilities = plain.capabilities or ()
            yield plain
        elif isinstance(event, events.RamSection):
            section_id = event.section_id
            yield event
        elif isinstance(event, events.RamBlocks):
            seen = _Seen(event)
            blocks = tuple(replace(block, mapped=None) for block in event.blocks)
            yield replace(event, blocks=blocks)
        elif isinstance(event, events.MappedRun):
            seen.note(event)
            yield from _next_piece(section_id)
            yield event
        elif isinstance(event, events.EndOfRam):
            for run in seen.unseen():
                yield from _next_piece(section_id)
                yield run
            seen = _Seen()
            yield event
        elif isinstance(event, events.Description):
            yield _described(event, capabilities)
        else:
            yield event


def one_channel(found: Iterable[events.Event]) -> Iterator[events.Event]:
    """Yield the events of an ordinary stream from those of a multifd migration.

    The pages of its channels must already be inserted where they belong.
    """
    inserted = False
    for event in found:
        if isinstance(event, events.MultifdFlush):
            continue
        if isinstance(event, events.MultifdRun):
            inserted = True
        elif inserted and isinstance(event, (events.PageRun, events.EncodedRun)):
            # The record may no longer omit its block, because pages of another block precede it.
            inserted = False
            yield replace(event, continued=False)
            continue
        yield event


def _next_piece(section_id: int) -> Iterator[events.Event]:
    """Yield the end of a piece of the `ram` section, and the beginning of the next piece."""
    yield events.EndOfRam(0)
    yield events.Footer(0, section_id)
    yield events.RamSection(0, SectionType.PART, section_id)


class _Seen:
    """The record of which pages a mapped-ram file has."""

    def __init__(self, listed: events.RamBlocks | None = None) -> None:
        self._listed = listed
        self._pages: dict[int, npt.NDArray[np.bool_]] = {}
        for index, block in enumerate(listed.blocks if listed is not None else ()):
            if not block.may_be_absent:
                assert listed is not None
                self._pages[index] = np.zeros(block.length // listed.page_size, np.bool_)

    def note(self, run: events.MappedRun) -> None:
        assert self._listed is not None
        numbers = (run.offsets // np.uint64(self._listed.page_size)).astype(np.intp)
        self._pages[run.block_index][numbers] = True

    def unseen(self) -> Iterator[events.PageRun]:
        """Yield the pages that are not in the file, and so are zero, of all blocks that are
        present.
        """
        for index, pages in self._pages.items():
            assert self._listed is not None
            block, size = self._listed.blocks[index], np.uint64(self._listed.page_size)
            for start in range(0, len(pages), ZERO_PAGES):
                numbers = start + np.flatnonzero(~pages[start : start + ZERO_PAGES])
                if len(numbers):
                    yield events.PageRun(0, block, index, numbers.astype(np.uint64) * size, None)


def _with(configuration: events.Configuration, capabilities: set[str]) -> events.Configuration:
    return replace(configuration, capabilities=tuple(sorted(capabilities)) or None)


def _described(event: events.Description, capabilities: tuple[str, ...]) -> events.Description:
    """Return the description with the configuration's capabilities replaced by these."""
    found = with_capabilities(event.json, capabilities)
    text = event.text if found == event.json else json.dumps(found).encode()
    return replace(event, text=text, json=found)
