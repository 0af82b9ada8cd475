"""Declare mapped-ram: a stream in a file where each page has a fixed place (QEMU 9.0 and later).

In the list, the entry of a RAM block is followed by a header, a bitmap with one bit per page, and
room for all its pages; then the next entry follows. Pages without a bit are zero. Source: QEMU's
documentation, docs/devel/migration/mapped-ram.rst, and captured files. The bitmap consists of
64-bit words in the byte order of the source's host; it is read as that of a little-endian host.
"""

from __future__ import annotations

from dataclasses import dataclass

import construct as c  # type: ignore[import-untyped]

VERSION = 1
PAGES_ALIGNMENT = 1 << 20
"""Alignment of a block's pages in the file, in bytes, as QEMU lays them out."""

_MAX_OFFSET = 1 << 62

Header = c.Struct(
    "version" / c.Int32ub,
    "page_size" / c.Int64ub,
    "bitmap_offset" / c.Int64ub,
    "pages_offset" / c.Int64ub,
)
"""Header after a block's entry; offsets in the file, both 0 if no pages follow."""

HEADER_SIZE: int = Header.sizeof()


@dataclass(frozen=True)
class MappedRam:
    """Place of a RAM block in the file: offsets of its bitmap and of its pages, in bytes.

    Both are 0 if the block was left out because it is shared (x-ignore-shared).
    """

    page_size: int
    bitmap_offset: int
    pages_offset: int

    @property
    def present(self) -> bool:
        """Return whether bitmap and pages are in the file."""
        return bool(self.bitmap_offset or self.pages_offset)


def bitmap_size(length: int, page_size: int) -> int:
    """Return the bytes of the bitmap of a block of `length` bytes."""
    return -(-length // (page_size * 64)) * 8


def area_end(mapped: MappedRam, length: int, behind_header: int) -> int:
    """Return the offset in the file where a block's pages end.

    `behind_header`: offset where the block's header ends. Raises ValueError if header, bitmap and
    pages overlap, or end beyond any possible file.
    """
    behind_bitmap = mapped.bitmap_offset + bitmap_size(length, mapped.page_size)
    end = mapped.pages_offset + length
    in_order = behind_header <= mapped.bitmap_offset and behind_bitmap <= mapped.pages_offset
    if not in_order or end > _MAX_OFFSET:
        message = f"bitmap at {mapped.bitmap_offset:#x}, pages at {mapped.pages_offset:#x}"
        raise ValueError(f"{message}: over each other, or outside any file")
    return end


def lay_out(length: int, page_size: int, behind_header: int) -> MappedRam:
    """Return the place that QEMU gives a block whose header ends at `behind_header` in the file."""
    behind_bitmap = behind_header + bitmap_size(length, page_size)
    pages_offset = -(-behind_bitmap // PAGES_ALIGNMENT) * PAGES_ALIGNMENT
    return MappedRam(page_size, behind_header, pages_offset)


def build_header(mapped: MappedRam) -> bytes:
    """Return the bytes of a header."""
    return bytes(Header.build({"version": VERSION, **vars(mapped)}))
