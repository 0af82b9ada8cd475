"""Read and check the records of the `ram` section, page records a whole run at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .. import events
from ..errors import StreamError, UnsupportedError
from ..pages import records, xbzrle, zlib_pages
from ..wire import ram
from ..wire.cursor import Cursor, Incomplete
from ..wire.marks import RamFlag, SectionType
from ..wire.stream import FOOTER_SIZE, Str8, section_footer, section_part
from .block_list import BlockListReader

# Plain numbers: enum's operators take longer than reading a record does.
_PAGE = int(RamFlag.PAGE)
_ZERO = int(RamFlag.ZERO)
_XBZRLE = int(RamFlag.XBZRLE)
_COMPRESSED = int(RamFlag.COMPRESS_PAGE)
_CONTINUE = int(RamFlag.CONTINUE)
_MAX_RECORDS = 4096
"""Limit for the XBZRLE or COMPRESS_PAGE records of one event."""
_ENOUGH_PAGES = 16
"""Number of pages read without error after which their size is taken to be right."""
_EOS_SIZE = ram.RECORD_HEADER_SIZE

_Records = tuple[list[int], list[int], list[int]]
_Run = TypeVar("_Run", bound=events.EncodedRun)


class RamReader:
    """Reader of the `ram` section, over all its pieces.

    `block_list`: reads the list of RAM blocks; what its entries carry has to be set before.
    `mixed`: whether plain and zero pages are returned as MixedRun.
    """

    def __init__(self, page_size: int, max_total: int, *, mixed: bool = False) -> None:
        self.block_list = BlockListReader(page_size, max_total)
        self.ended = False
        self.at_end = False
        self._start: events.RamSection | None = None
        self._seam = b""
        self._block: events.RamBlock | None = None
        self._ending = False
        self._pages = 0
        read_run = self._read_mixed if mixed else self._read_run
        self._runs: dict[int, Callable[[Cursor, int, int], events.Event]] = {
            _PAGE: read_run,
            _ZERO: read_run,
            _XBZRLE: self._read_xbzrle,
            _COMPRESSED: self._read_compressed,
        }

    @property
    def section(self) -> events.RamSection | None:
        """Return the section's first piece, or None before it began."""
        return self._start

    @property
    def page_size(self) -> int:
        """Return the bytes of a page, as far as known by now."""
        return self.block_list.page_size

    @property
    def begun(self) -> bool:
        """Return whether the section's first piece has begun."""
        return self._start is not None

    def start(self, section: events.IterativeSection) -> events.RamSection:
        """Begin the section's first piece, and return its event.

        Raises StreamError if the section began before, UnsupportedError for another version.
        """
        offset, name = section.offset, section.name
        if section.version != ram.SECTION_VERSION:
            message = f"version {section.version} is not supported"
            raise UnsupportedError(message, offset=offset, section=name)
        if self._start is not None:
            raise StreamError("a second section of this name", offset=offset, section=name)
        self._start = events.RamSection(**vars(section))
        section_id = section.section_id
        self._seam = ram.end_of_ram() + section_footer(section_id) + section_part(section_id)
        return self._start

    def resume(self, block: events.RamBlock | None) -> None:
        """Continue at any record of a piece; records that name no block continue `block`."""
        self.at_end = self._ending = False
        self._block = block

    def begin(self, kind: SectionType) -> None:
        """Begin a piece of the section."""
        self.at_end = False
        self._ending = kind == SectionType.END

    def read(self, cursor: Cursor) -> list[events.Event]:
        """Return the events of the next record, run of records, block list or seam of pieces."""
        if self.block_list.gap_end:
            self._pass_gap(cursor)
        if self.block_list.complete:
            return self._pass_seam(cursor) or [self._read_record(cursor)]
        if not self.block_list.begun:
            return self._begin_list(cursor)
        listed = self.block_list.read(cursor)
        return [] if listed is None else [listed]

    def _begin_list(self, cursor: Cursor) -> list[events.Event]:
        offset, value = cursor.offset, cursor.peek_u64()
        flags = value & (self.page_size - 1)
        if flags != RamFlag.MEM_SIZE:
            message = f"{value:#018x} in place of the list of blocks{self._doubt()}"
            raise self._error(message, offset)
        cursor.take(ram.RecordHeader)
        self.block_list.begin(offset, value - flags)
        return [self.block_list.so_far()] if self.block_list.complete else []

    def _pass_gap(self, cursor: Cursor) -> None:
        """Skip pages at fixed places (mapped-ram), as far as they have arrived."""
        left = self.block_list.gap_end - cursor.offset
        cursor.position += max(0, min(left, len(cursor.view) - cursor.position))
        cursor.commit()
        if cursor.offset < self.block_list.gap_end:
            raise Incomplete
        self.block_list.gap_end = 0

    def check_inside(self, name: str, start: int, length: int, offset: int) -> None:
        """Raise StreamError if a byte range, which the stream names at `offset`, is in no block."""
        block = self.block_list.blocks.get(name)
        if block is None or start + length > block.length:
            message = f"bytes {start:#x} to {start + length:#x} of block {name!r}, outside its RAM"
            raise self._error(message, offset)

    def _read_record(self, cursor: Cursor) -> events.Event:
        value = cursor.peek_u64()
        flags = value & (self.page_size - 1)
        kind = flags & ~_CONTINUE
        read = self._runs.get(kind)
        if read is not None:
            return read(cursor, value - flags, flags)
        offset = cursor.offset
        if value == RamFlag.EOS:
            cursor.take(ram.RecordHeader)
            self.at_end = True
            self.ended = self._ending
            return events.EndOfRam(offset)
        if value == RamFlag.MULTIFD_FLUSH:
            cursor.take(ram.RecordHeader)
            return events.MultifdFlush(offset)
        raise self._unknown_record(value, kind, offset)

    def _pass_seam(self, cursor: Cursor) -> list[events.Event]:
        """Skip the end of one piece and the header of the next, if they are next, and return both.

        The same bytes always lie between two pieces; they are compared at once because that is
        fast.
        """
        end = cursor.position + len(self._seam)
        if cursor.view[cursor.position : end] != self._seam or self._ending:
            return []
        assert self._start is not None
        start, offset = self._start, cursor.offset
        cursor.position = end
        footer, part = offset + _EOS_SIZE, offset + _EOS_SIZE + FOOTER_SIZE
        return [
            events.EndOfRam(offset),
            events.Footer(footer, start.section_id),
            replace(start, offset=part, kind=SectionType.PART),
        ]

    def _unknown_record(self, value: int, kind: int, offset: int) -> StreamError:
        if kind == RamFlag.MEM_SIZE:
            return self._error("a second list of blocks", offset)
        if kind == RamFlag.HOOK:
            message = "HOOK records (RDMA) are not supported"
            return UnsupportedError(message, offset=offset, section=ram.SECTION_NAME)
        return self._error(f"{value:#018x} is no record{self._doubt()}", offset)

    def _doubt(self) -> str:
        """Return a hint for a message that the page size may be wrong, if it is not known."""
        if self.block_list.page_size_said or self._pages >= _ENOUGH_PAGES:
            return ""
        size = self.page_size
        return f", if pages have {size} bytes: the stream does not say (give --page-size)"

    def _read_run(self, cursor: Cursor, address: int, flags: int) -> events.PageRun:
        offset = cursor.offset
        continued = bool(flags & _CONTINUE)
        block = self._read_block_of_page(cursor, continued=continued)
        first = cursor.position
        plain = bool(flags & _PAGE)
        size = self.page_size if plain else 1
        if first + size > len(cursor.view):
            raise Incomplete
        fill = 0 if plain else cursor.view[first]
        if plain:
            offsets = records.parse_plain(cursor.data, first + size, self.page_size, address)
        else:
            offsets = records.parse_zero(cursor.data, first + size, self.page_size, address, fill)
        stride = ram.RECORD_HEADER_SIZE + size
        self._block = block
        count = self._sound(block, offsets)
        offsets = offsets[:count]
        run = events.PageRun(
            offset,
            block,
            self.block_list.indexes[block.name],
            offsets,
            records.plain_pages(cursor.data, first, count, self.page_size) if plain else None,
            fill,
            continued,
            first,
        )
        self._check_inside(run)
        cursor.position = first + count * stride - ram.RECORD_HEADER_SIZE
        return run

    def _read_mixed(self, cursor: Cursor, address: int, flags: int) -> events.MixedRun:
        offset = cursor.offset
        continued = bool(flags & _CONTINUE)
        block = self._read_block_of_page(cursor, continued=continued)
        position = cursor.position + self.page_size
        if flags & _ZERO:
            cursor.peek()
            position = cursor.position + 1
        offsets, zero = records.parse_mixed(cursor.data, position, self.page_size)
        offsets = np.concatenate([np.array([address], np.uint64), offsets])
        count = self._sound(block, offsets)
        zeros = int(np.count_nonzero(zero[: count - 1]))
        self._block = block
        run = events.MixedRun(
            offset,
            block,
            self.block_list.indexes[block.name],
            offsets[:count],
            None,
            continued=continued,
            zero=np.concatenate([np.array([bool(flags & _ZERO)]), zero])[:count],
        )
        self._check_inside(run)
        plain = (count - 1 - zeros) * (ram.RECORD_HEADER_SIZE + self.page_size)
        cursor.position = position + plain + zeros * records.ZERO_STRIDE
        return run

    def _read_block_of_page(self, cursor: Cursor, *, continued: bool) -> events.RamBlock:
        """Skip the header of a page record, and the name if one follows; return the block."""
        offset = cursor.offset
        cursor.position += ram.RECORD_HEADER_SIZE
        block = self._block if continued else self._read_name(cursor, offset)
        if block is None:
            raise self._error("the first page continues no block", offset)
        return block

    def _read_xbzrle(self, cursor: Cursor, address: int, flags: int) -> events.XbzrleRun:
        def read_size(offset: int) -> int:
            head = cursor.take(ram.XbzrleHead)
            if head.encoding != ram.XBZRLE_ENCODING:
                raise self._error(f"XBZRLE encoding {head.encoding} is not known", offset)
            if head.length > self.page_size:
                raise self._error(f"an XBZRLE encoding of {head.length} bytes", offset)
            return int(head.length)

        def read_more(position: int) -> _Records:
            most = _MAX_RECORDS - 1
            return xbzrle.parse_records(cursor.view, position, most, self.page_size)

        kind = events.XbzrleRun
        return self._read_encoded(cursor, kind, (address, flags), read_size, read_more)

    def _read_compressed(self, cursor: Cursor, address: int, flags: int) -> events.CompressedRun:
        def read_size(offset: int) -> int:
            size = int(cursor.take(ram.CompressedHead))
            if size > zlib_pages.bound(self.page_size):
                raise self._error(f"a compressed page of {size} bytes", offset)
            return size

        def read_more(position: int) -> _Records:
            most = min(_MAX_RECORDS, zlib_pages.MAX_RUN_BYTES // self.page_size) - 1
            return zlib_pages.parse_records(cursor.view, position, most, self.page_size)

        kind = events.CompressedRun
        return self._read_encoded(cursor, kind, (address, flags), read_size, read_more)

    def _read_encoded(
        self,
        cursor: Cursor,
        kind: type[_Run],
        header: tuple[int, int],
        read_size: Callable[[int], int],
        read_more: Callable[[int], _Records],
    ) -> _Run:
        """Return a run: a record, whose encoding must be here, and the records like it that follow.

        `read_size` reads the part before the encoding, given the record's offset.
        """
        offset, (address, flags) = cursor.offset, header
        continued = bool(flags & _CONTINUE)
        block = self._read_block_of_page(cursor, continued=continued)
        size = read_size(offset)
        first = cursor.position
        if first + size > len(cursor.view):
            raise Incomplete
        addresses, starts, sizes = read_more(first + size)
        offsets = np.array([address, *addresses], np.uint64)
        count = self._sound(block, offsets)
        run = kind(
            offset,
            block,
            self.block_list.indexes[block.name],
            offsets[:count],
            cursor.data,
            np.array([first, *starts[: count - 1]], np.intp),
            np.array([size, *sizes[: count - 1]], np.intp),
            continued,
        )
        self._check_inside(run)
        self._block = block
        cursor.position = int(run.starts[-1] + run.sizes[-1])
        return run

    def _read_name(self, cursor: Cursor, offset: int) -> events.RamBlock:
        raw = cursor.take(Str8)
        block = self.block_list.blocks.get(raw.decode(errors="replace"))
        if block is None:
            raise self._error(f"a page of an unknown block {raw!r}", offset)
        return block

    @staticmethod
    def _sound(block: events.RamBlock, offsets: npt.NDArray[np.uint64]) -> int:
        """Return how many records precede the first one outside the block; at least one."""
        if offsets.max() < block.length:
            return len(offsets)
        return max(1, int((offsets >= block.length).argmax()))

    def _check_inside(self, run: events.PageRun | events.EncodedRun) -> None:
        """Raise StreamError if the first page is outside its block.

        Other pages outside the block would begin the next run.
        """
        self._pages += len(run.offsets)
        if run.offsets[0] >= run.block.length:
            message = f"a page at {int(run.offsets[0]):#x} of block {run.block.name}"
            raise self._error(f"{message}, outside its RAM", run.offset)

    def _error(self, message: str, offset: int) -> StreamError:
        return StreamError(message, offset=offset, section=ram.SECTION_NAME)
