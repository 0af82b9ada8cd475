"""Read and check the list of RAM blocks after MEM_SIZE."""

from __future__ import annotations

from .. import events
from ..errors import StreamError, UnsupportedError
from ..wire import mapped_ram, ram
from ..wire.cursor import Cursor, decode_name
from ..wire.mapped_ram import MappedRam
from .configuration import checked_page_size

MAX_BLOCKS = 4096


class BlockListReader:
    """Reader of the list of RAM blocks.

    Fields of an entry besides name and length: the block's page size, if it has huge pages, with
    `postcopy`; its address, with `addressed`; its place in the file, with `mapped`. `page_size`:
    bytes; `page_size_said`: whether the stream has announced it.
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
        """The position in the stream up to which only pages at fixed places (mapped-ram) follow."""
        self.complete = False
        """True once all entries were read."""
        self._max_total = max_total
        self._listed = 0
        self._start: tuple[int, int] | None = None
        self._file_offset: int | None = None

    @property
    def begun(self) -> bool:
        """Return whether MEM_SIZE was read."""
        return self._start is not None

    def so_far(self) -> events.RamBlocks:
        """Return the entries that were read so far, of a list that may be incomplete."""
        assert self._start is not None
        blocks = tuple(self.blocks.values())
        return events.RamBlocks(*self._start, blocks, self.page_size)

    def begin(self, offset: int, total: int) -> None:
        """Begin the list after MEM_SIZE at `offset` in the stream, with `total` bytes of RAM."""
        if self._start is not None:
            raise _error("a second list of blocks", offset)
        if total > self._max_total:
            raise _error(f"{total} bytes of RAM, the limit is {self._max_total}", offset)
        self._start = (offset, total)
        # A machine may have no RAM of its own.
        self.complete = total == 0

    def read(self, cursor: Cursor) -> events.RamBlocks | None:
        """Read the next entry, and return the event if it was the last one."""
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
        """Return the page size if the entry carries it, which only those of huge pages do.

        Its first byte is zero; the next entry cannot begin so, as its name is not empty.
        """
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
        """Note where this block's pages end.

        The first bitmap directly follows its header, which says where in its file the stream
        begins.
        """
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
