"""Reads and checks the list of RAM blocks behind MEM_SIZE."""

from __future__ import annotations

from .. import events
from ..errors import StreamError, UnsupportedError
from ..wire import mapped_ram, ram
from ..wire.cursor import Cursor, decode_name
from ..wire.mapped_ram import MappedRam
from .configuration import checked_page_size

MAX_BLOCKS = 4096


class BlockListReader:
    """The state of the list. What an entry carries beside name and length:

    `postcopy`: maybe the block's page size; `addressed`: its address; `mapped`: its place in the
    file. `page_size`, in bytes, is said by the stream where `page_size_said`.
    """

    def __init__(self, page_size: int, max_total: int) -> None:
        self.page_size = page_size
        self.page_size_said = False
        self.postcopy = False
        self.addressed = False
        self.mapped = False
        self.blocks: dict[str, events.RamBlock] = {}
        self.indexes: dict[str, int] = {}
        self.gap_end = 0
        """Up to this position in the stream there are only pages that have places of their own."""
        self.complete = False
        """All entries were read."""
        self._max_total = max_total
        self._listed = 0
        self._start: tuple[int, int] | None = None
        self._file_offset: int | None = None

    @property
    def begun(self) -> bool:
        """MEM_SIZE was read."""
        return self._start is not None

    def so_far(self) -> events.RamBlocks:
        """The entries that were read, of a list that is not complete."""
        assert self._start is not None
        blocks = tuple(self.blocks.values())
        return events.RamBlocks(*self._start, blocks, self.page_size)

    def begin(self, offset: int, total: int) -> None:
        """MEM_SIZE was read, at `offset` in the stream: `total` bytes of RAM."""
        if self._start is not None:
            raise _error("a second list of blocks", offset)
        if total == 0:
            raise _error("a list of no blocks", offset)
        if total > self._max_total:
            raise _error(f"{total} bytes of RAM, the limit is {self._max_total}", offset)
        self._start = (offset, total)

    def read(self, cursor: Cursor) -> events.RamBlocks | None:
        """The next entry; the event when it was the last."""
        assert self._start is not None
        offset, total = cursor.offset, self._start[1]
        entry = cursor.take(ram.BlockEntry)
        name = decode_name(entry.name)
        if name is None or name in self.blocks:
            raise _error(f"a block named {entry.name!r}, empty, unreadable or twice", offset)
        page_size = self._read_page_size(cursor) if self.postcopy else None
        address = cursor.take(ram.BlockAddress) if self.addressed else None
        mapped = self._read_place(cursor, entry.length) if self.mapped else None
        if (
            not entry.length
            or entry.length % self.page_size
            or self._listed + entry.length > total
            or len(self.blocks) >= MAX_BLOCKS
        ):
            message = f"block {name} of {entry.length} bytes does not fit a total of {total}"
            raise _error(message, offset)
        self._listed += entry.length
        self.indexes[name] = len(self.blocks)
        self.blocks[name] = events.RamBlock(name, entry.length, page_size, address, mapped)
        self.complete = self._listed == total
        return self.so_far() if self.complete else None

    def _read_page_size(self, cursor: Cursor) -> int | None:
        """Only blocks of huge pages carry it. A name cannot begin with a zero byte, as it does."""
        size = cursor.peek_u64()
        if size >= 1 << 56 or size < self.page_size or size & (size - 1):
            return None
        cursor.take(ram.BlockPageSize)
        return size

    def _read_place(self, cursor: Cursor, length: int) -> MappedRam:
        offset = cursor.offset
        header = cursor.take(mapped_ram.Header)
        if header.version != mapped_ram.VERSION:
            message = f"mapped-ram version {header.version} is not supported"
            raise UnsupportedError(message, offset=offset, section=ram.SECTION_NAME)
        mapped = MappedRam(header.page_size, header.bitmap_offset, header.pages_offset)
        size = checked_page_size(mapped.page_size, offset)
        if size != self.page_size and (self.page_size_said or self.blocks):
            raise _error(f"a block of pages of {size} bytes, not {self.page_size}", offset)
        self.page_size, self.page_size_said = size, True
        if mapped.present:
            self._find_gap(mapped, length, cursor.offset, offset)
        return mapped

    def _find_gap(self, mapped: MappedRam, length: int, behind_header: int, offset: int) -> None:
        """The first bitmap stands behind its header: so it is known where the stream begins."""
        if self._file_offset is None:
            self._file_offset = mapped.bitmap_offset - behind_header
        try:
            end = mapped_ram.area_end(mapped, length, self._file_offset + behind_header)
        except ValueError as error:
            raise _error(str(error), offset) from None
        if self._file_offset < 0:
            raise _error(f"a bitmap at {mapped.bitmap_offset:#x}, before its header", offset)
        self.gap_end = end - self._file_offset


def _error(message: str, offset: int) -> StreamError:
    return StreamError(message, offset=offset, section=ram.SECTION_NAME)
