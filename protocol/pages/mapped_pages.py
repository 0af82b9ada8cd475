"""Read the pages of a mapped-ram file in runs, through a function that reads at any position.

Memory is bounded whatever the file says; data past the end of the file is noticed when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import StreamError
from ..events import MappedRun, RamBlock, RamBlocks
from ..wire.mapped_ram import bitmap_size
from ..wire.ram import RECORD_HEADER_SIZE, SECTION_NAME, mem_size
from .block_entry import block_entry

ReadAt = Callable[[int, int], bytes]
"""Function that returns `size` bytes from a position in the stream on, or fewer at the file's end.

Arguments: position, size.
"""

OnMissing = Callable[[int, npt.NDArray[np.intp] | slice], None]
"""Function that receives pages that are not in the file.

Arguments: index of the block; numbers (n,) of its pages, or a slice of them.
"""

_BITMAP_BYTES = 1 << 16
"""Bytes of a bitmap that are read at once: 2 GiB of RAM with pages of 4096 bytes."""
_WINDOW = 1 << 20
"""Bytes of pages that are read at once; a multiple of any page size."""


@dataclass(frozen=True)
class Part:
    """The pages, of `count` pages of a block from page `first` on, that are in the file.

    `numbers`: their numbers, (n,). `place`: position in the stream of the block's page 0.
    """

    block: RamBlock
    index: int
    page_size: int
    place: int
    first: int
    count: int
    numbers: npt.NDArray[np.intp]


def list_pieces(listed: RamBlocks) -> list[tuple[int, bytes]]:
    """Return the list as it lies in a file: positions in the stream, and the bytes at each."""
    return _lay_out(listed)[0]


def _lay_out(listed: RamBlocks) -> tuple[list[tuple[int, bytes]], int]:
    """Return the pieces of the list, and the position of the stream in its file.

    The latter follows from the first bitmap's offset, which counts from the beginning of the file.
    """
    pieces, base = [(listed.offset, mem_size(listed.total))], None
    at = listed.offset + RECORD_HEADER_SIZE
    for block in listed.blocks:
        entry = block_entry(block)
        pieces.append((at, entry))
        at += len(entry)
        if block.mapped is not None and block.mapped.present:
            base = block.mapped.bitmap_offset - at if base is None else base
            at = block.mapped.pages_offset - base + block.length
    return pieces, base or 0


def read_pages(
    listed: RamBlocks, read_at: ReadAt, on_missing: OnMissing | None = None
) -> Iterator[MappedRun]:
    """Yield all pages that the file has.

    Raises StreamError if the file ends before them. A run's data is valid until the next run is
    requested. `on_missing`: instead receives the pages past the end of the file, and those whose
    bitmap is past it.
    """
    for part in read_parts(listed, read_at, on_missing):
        windows = part.numbers // (_WINDOW // part.page_size)
        for some in np.split(part.numbers, np.flatnonzero(np.diff(windows)) + 1):
            if len(some):
                yield from _read_run(part, some, read_at, on_missing)


def read_parts(
    listed: RamBlocks, read_at: ReadAt, on_missing: OnMissing | None = None
) -> Iterator[Part]:
    """Yield which pages the file has, as its bitmaps say.

    Raises StreamError if it ends before them. `on_missing` is as for `read_pages`.
    """
    base = _lay_out(listed)[1]
    for index, block in enumerate(listed.blocks):
        if block.mapped is not None and block.mapped.present:
            yield from _read_bitmap(block, index, base, read_at, on_missing)


def _read_bitmap(
    block: RamBlock, index: int, base: int, read_at: ReadAt, on_missing: OnMissing | None
) -> Iterator[Part]:
    mapped = block.mapped
    assert mapped is not None
    size, count = mapped.page_size, block.length // mapped.page_size
    start = mapped.bitmap_offset - base
    for at in range(0, bitmap_size(block.length, size), _BITMAP_BYTES):
        wanted = min(_BITMAP_BYTES, bitmap_size(block.length, size) - at)
        data = read_at(start + at, wanted)
        if len(data) < wanted:
            if on_missing is None:
                raise past_the_end(f"the bitmap of block {block.name}", start + at)
            on_missing(index, slice((at + len(data)) * 8, count))
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        numbers = at * 8 + np.flatnonzero(bits)
        if on_missing is not None:
            numbers = numbers[numbers < count]
        if len(numbers) and numbers[-1] >= count:
            message = f"the bitmap of block {block.name} has a page {numbers[-1]} of {count}"
            raise StreamError(message, offset=start + at, section=SECTION_NAME)
        here = min(len(bits), count - at * 8)
        yield Part(block, index, size, mapped.pages_offset - base, at * 8, here, numbers)
        if len(data) < wanted:
            return


def _read_run(
    part: Part,
    numbers: npt.NDArray[np.intp],
    read_at: ReadAt,
    on_missing: OnMissing | None,
) -> Iterator[MappedRun]:
    """Yield the pages `numbers`, which are near each other, with one read from first to last."""
    block, size = part.block, part.page_size
    first, last = int(numbers[0]), int(numbers[-1])
    place, wanted = part.place + first * size, (last - first + 1) * size
    raw = read_at(place, wanted)
    if len(raw) < wanted:
        if on_missing is None:
            raise past_the_end(f"a page of block {block.name}", place)
        here = numbers < first + len(raw) // size
        on_missing(part.index, numbers[~here])
        numbers = numbers[here]
        if not len(numbers):
            return
    data = np.frombuffer(raw[: len(raw) // size * size], np.uint8).reshape(-1, size)
    pages = data if len(data) == len(numbers) else data[numbers - first]
    yield MappedRun(place, block, part.index, numbers.astype(np.uint64) * np.uint64(size), pages)


def past_the_end(what: str, place: int) -> StreamError:
    """Return the error for what the file should have at a position in the stream, and has not."""
    message = f"{what} lies past the end of the file"
    return StreamError(message, offset=place, section=SECTION_NAME)
