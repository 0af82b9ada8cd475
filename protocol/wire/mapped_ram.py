"""mapped-ram: a stream in a file, in which each page has a place of its own (QEMU 9.0 on).

Behind the entry of a RAM block in the list stand a header, a bitmap with a bit a page, and room for
all its pages; then comes the next entry. Pages without a bit are zero. Source: QEMU's
documentation, docs/devel/migration/mapped-ram.rst, and captured files. The bitmap is one of 64-bit
words in the byte order of the source's host; it is read as that of a little-endian one.
"""

from __future__ import annotations

from dataclasses import dataclass

import construct as c  # type: ignore[import-untyped]

VERSION = 1
PAGES_ALIGNMENT = 1 << 20
"""Of the pages' place in the file, as QEMU lays it out."""

_MAX_OFFSET = 1 << 62

Header = c.Struct(
    "version" / c.Int32ub,
    "page_size" / c.Int64ub,
    "bitmap_offset" / c.Int64ub,
    "pages_offset" / c.Int64ub,
)
"""Behind a block's entry; offsets from the beginning of the file, both 0 where nothing follows."""

HEADER_SIZE: int = Header.sizeof()


@dataclass(frozen=True)
class MappedRam:
    """Where in the file a RAM block is: offsets of its bitmap and of its pages, in bytes.

    Both 0: it was left out, being shared (x-ignore-shared).
    """

    page_size: int
    bitmap_offset: int
    pages_offset: int

    @property
    def present(self) -> bool:
        """Whether bitmap and pages are in the file."""
        return bool(self.bitmap_offset or self.pages_offset)


def bitmap_size(length: int, page_size: int) -> int:
    """Bytes of the bitmap of a block of `length` bytes."""
    return -(-length // (page_size * 64)) * 8


def area_end(mapped: MappedRam, length: int, behind_header: int) -> int:
    """Where a block's pages end, from the beginning of the file; its header ends `behind_header`.

    Raises ValueError where header, bitmap and pages would lie over each other, or too far out.
    """
    behind_bitmap = mapped.bitmap_offset + bitmap_size(length, mapped.page_size)
    end = mapped.pages_offset + length
    in_order = behind_header <= mapped.bitmap_offset and behind_bitmap <= mapped.pages_offset
    if not in_order or end > _MAX_OFFSET:
        message = f"bitmap at {mapped.bitmap_offset:#x}, pages at {mapped.pages_offset:#x}"
        raise ValueError(f"{message}: over each other, or outside any file")
    return end


def lay_out(length: int, page_size: int, behind_header: int) -> MappedRam:
    """The place of a block as QEMU chooses it; its header ends at `behind_header` in the file."""
    behind_bitmap = behind_header + bitmap_size(length, page_size)
    pages_offset = -(-behind_bitmap // PAGES_ALIGNMENT) * PAGES_ALIGNMENT
    return MappedRam(page_size, behind_header, pages_offset)


def build_header(mapped: MappedRam) -> bytes:
    """The bytes of a header."""
    return bytes(Header.build({"version": VERSION, **vars(mapped)}))
