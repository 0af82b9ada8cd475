"""Decode COMPRESS_PAGE: a page as zlib data (capability `compress`, until QEMU 9.0).

Source: RFC 1950, "ZLIB Compressed Data Format Specification"; QEMU's documentation of the
capability, docs/multi-thread-compression.txt. The records are declared in `wire.ram`.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from ..errors import StreamError
from ..events import CompressedRun
from ..wire.marks import RamFlag
from ..wire.packed import struct_of
from ..wire.ram import SECTION_NAME, CompressedContinued

MAX_RUN_BYTES = 16 << 20
"""Limit for what the records of one event decompress to, in bytes."""

_HEAD = struct_of(CompressedContinued)
_CONTINUED = int(RamFlag.COMPRESS_PAGE | RamFlag.CONTINUE)


def bound(page_size: int) -> int:
    """Return an upper bound for the bytes that an encoder needs for a page."""
    return page_size + (page_size >> 6) + 64


def parse_records(
    data: memoryview, position: int, count: int, page_size: int
) -> tuple[list[int], list[int], list[int]]:
    """Read up to `count` whole COMPRESS_PAGE|CONTINUE records that follow each other.

    Returns three lists: each page's offset in its block, the position of its data, and the bytes of
    its data. Stops before anything else, and before data longer than `bound`.
    """
    # The loop repeats that of `xbzrle`: one loop for both kinds of heads takes 1.5 times as long.
    addresses: list[int] = []
    starts: list[int] = []
    sizes: list[int] = []
    last, mask, longest = len(data) - _HEAD.size, page_size - 1, bound(page_size)
    while len(starts) < count and position <= last:
        header, size = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        if header & mask != _CONTINUED or size > longest or position + size > len(data):
            break
        addresses.append(header ^ _CONTINUED)
        starts.append(position)
        sizes.append(size)
        position += size
    return addresses, starts, sizes


def decompress(run: CompressedRun, page_size: int) -> npt.NDArray[np.uint8]:
    """Return the pages (n, page_size) of a run.

    Raises StreamError if one does not decompress to exactly a page.
    """
    pages = np.empty((len(run.offsets), page_size), np.uint8)
    places = zip(run.starts.tolist(), run.sizes.tolist(), strict=True)
    for index, (start, size) in enumerate(places):
        page = _decompress(run.data[start : start + size].data, page_size)
        if page is None:
            message = f"COMPRESS_PAGE: not the zlib data of {page_size} bytes"
            offset = run.encoding_offset(index)
            raise StreamError(message, offset=offset, section=SECTION_NAME)
        pages[index] = np.frombuffer(page, np.uint8)
    return pages


def _decompress(data: memoryview, page_size: int) -> bytes | None:
    inflater = zlib.decompressobj()
    try:
        # One byte more than expected, so that a decompression bomb is noticed before it grows.
        page = inflater.decompress(data, page_size + 1)
    except zlib.error:
        return None
    whole = inflater.eof and not inflater.unused_data
    return page if whole and len(page) == page_size else None
