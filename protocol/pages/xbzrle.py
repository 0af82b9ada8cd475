"""Encode and decode XBZRLE: a page as its difference to the page that the destination has.

An encoding is pairs of runs: the length of a run of unchanged bytes, the length of a run of changed
bytes, and the changed bytes. Lengths are ULEB128 of one or two bytes; unchanged bytes at the end
are left out. Source: QEMU's documentation, docs/xbzrle.txt.

Both directions work on batches: numpy finds or reads the runs of all pages at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import StreamError, VmferryError
from ..events import XbzrleRun
from ..wire.layout import dtype_of
from ..wire.marks import RamFlag
from ..wire.packed import struct_of
from ..wire.ram import RECORD_HEADER_SIZE, SECTION_NAME, XBZRLE_ENCODING, XbzrleContinued
from .records import Buffer

Bytes = npt.NDArray[np.uint8]
Indexes = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

RECORD_HEAD = dtype_of(XbzrleContinued)
"""Layout of a record before its encoded bytes, if the record has the flag CONTINUE."""

_HEAD = struct_of(XbzrleContinued)
_CONTINUED = int(RamFlag.XBZRLE | RamFlag.CONTINUE)
_MAX_LENGTH = (1 << 14) - 1
"""Limit for the length of a run, in bytes: two bytes of ULEB128 hold no more."""
_ONE_BYTE = 128
_LONG_RUN = 32
"""Length in bytes from which on a run is cheaper to copy on its own."""
_FEW = 12
"""Number of pages above which one numpy step for all of them is cheaper than a loop."""
_MANY_WORDS = 1 / 3
"""Share of changed words above which comparing bytes is cheaper than looking into the words."""
_STEP = 256 << 10
"""Bytes compared at once: fits a cache, and needs no fresh memory each time."""


class XbzrleError(VmferryError, ValueError):
    """An invalid encoding; `index`: that of the page in its batch."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index
        self.message = message


@dataclass(frozen=True)
class Runs:
    """Runs of changed bytes, in the order of pages; each array has one element per run.

    `page`: index in the batch; `start`: position in the page; `length` in bytes; `source`: position
    of the new bytes in the bytes of all encodings.
    """

    page: Indexes
    start: Indexes
    length: Indexes
    source: Indexes


class Delta:
    """The differences between `new` pages and `old` ones, both (n, page_size), contiguous.

    `sizes` (n,): bytes of the encodings; 0 if the page is unchanged. `overflow` (n,): True if a
    plain page would not be longer. Neither input array may change before `pack`.
    """

    def __init__(self, old: Bytes, new: Bytes) -> None:
        count, page_size = new.shape
        self._new = new
        starts, ends = _changed_runs(old, new)
        self._pages = starts // page_size
        self._starts = starts
        self._lengths = ends - starts
        # The end of the run before, if that is in the same page, else the beginning of the page.
        before = np.maximum(np.concatenate(([0], ends[:-1])), self._pages * page_size)
        self._gaps = starts - before[: len(starts)]
        heads = 2 + (self._gaps >= _ONE_BYTE) + (self._lengths >= _ONE_BYTE)
        self._run_sizes = heads + self._lengths
        behind = np.concatenate(([0], np.cumsum(self._run_sizes)))
        self.sizes = np.diff(behind[np.searchsorted(self._pages, np.arange(count + 1))])
        self.overflow: Mask = self.sizes + RECORD_HEAD.itemsize >= page_size + RECORD_HEADER_SIZE
        too_long = (self._gaps > _MAX_LENGTH) | (self._lengths > _MAX_LENGTH)
        self.overflow[self._pages[too_long]] = True
        self.encoded: Mask = (self.sizes > 0) & ~self.overflow

    def pack_size(self, name: bytes | None) -> int:
        """Return the bytes that `pack` writes."""
        records = int(self.encoded.sum())
        if not records:
            return 0
        name_size = 0 if name is None else 1 + len(name)
        return name_size + records * RECORD_HEAD.itemsize + int(self.sizes[self.encoded].sum())

    def pack(self, out: Buffer, name: bytes | None, offsets: npt.NDArray[np.uint64]) -> int:
        """Write XBZRLE records of the `encoded` pages, and return how many bytes.

        `offsets` (n,): position of each page in the block, in bytes. `name`: of the block, for the
        first record; None if that record continues the block of the record before it.
        """
        if not self.encoded.any():
            return 0
        data = np.frombuffer(out, np.uint8)
        kept = self.encoded[self._pages]
        sizes, addresses = self.sizes[self.encoded], offsets[self.encoded]
        shift = self._pack_heads(data, name, addresses, sizes)
        record = (np.cumsum(self.encoded) - 1)[self._pages[kept]]
        gaps, lengths = self._gaps[kept], self._lengths[kept]
        behind = np.cumsum(self._run_sizes[kept])
        at = behind - self._run_sizes[kept] + shift + (record + 1) * RECORD_HEAD.itemsize
        at = _put_lengths(data, at, gaps)
        at = _put_lengths(data, at, lengths)
        _copy_runs(data, at, self._new.reshape(-1), self._starts[kept], lengths)
        return self.pack_size(name)

    @staticmethod
    def _pack_heads(
        data: Bytes, name: bytes | None, addresses: npt.NDArray[np.uint64], sizes: Indexes
    ) -> int:
        """Write everything but the encodings, and return how far the block's name shifts them."""
        heads = np.empty(len(sizes), RECORD_HEAD)
        heads["header"] = addresses | np.uint64(_CONTINUED)
        heads["encoding"] = XBZRLE_ENCODING
        heads["length"] = sizes
        shift = 0 if name is None else 1 + len(name)
        at = shift + np.cumsum(sizes + RECORD_HEAD.itemsize) - sizes - RECORD_HEAD.itemsize
        data[at[:, None] + np.arange(RECORD_HEAD.itemsize)] = heads.view(np.uint8).reshape(
            -1, RECORD_HEAD.itemsize
        )
        if name is not None:
            first = int(addresses[0]) | RamFlag.XBZRLE
            head = first.to_bytes(RECORD_HEADER_SIZE, "big") + bytes([len(name)]) + name
            data[: len(head)] = np.frombuffer(head, np.uint8)
        return shift


def parse_records(
    data: memoryview, position: int, count: int, page_size: int
) -> tuple[list[int], list[int], list[int]]:
    """Read up to `count` whole XBZRLE|CONTINUE records that follow each other from `position`.

    Returns three lists: each page's offset in its block, the position of its encoding, and the
    encoding's bytes. Stops before anything else, and before an encoding longer than a page.
    """
    addresses: list[int] = []
    starts: list[int] = []
    sizes: list[int] = []
    last, mask = len(data) - _HEAD.size, page_size - 1
    while len(starts) < count and position <= last:
        header, encoding, size = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        if (
            header & mask != _CONTINUED
            or encoding != XBZRLE_ENCODING
            or size > page_size
            or position + size > len(data)
        ):
            break
        addresses.append(header ^ _CONTINUED)
        starts.append(position)
        sizes.append(size)
        position += size
    return addresses, starts, sizes


def _changed_runs(old: Bytes, new: Bytes) -> tuple[Indexes, Indexes]:
    """Return where runs of changed bytes start and end, counted over all pages.

    A single unchanged byte between two changed ones is cheaper to send than to leave out. Whole
    words are compared first: most do not change, and only the others are examined.
    """
    page_size = new.shape[1]
    old_words, new_words = old.reshape(-1).view(np.uint64), new.reshape(-1).view(np.uint64)
    words = np.flatnonzero(old_words != new_words)
    if not len(words):
        return words, words
    if len(words) > _MANY_WORDS * len(old_words):
        step = max(1, _STEP // page_size)
        parts = [slice(first, first + step) for first in range(0, len(new), step)]
        found = [_runs_of_bytes(old[part], new[part]) + part.start * page_size for part in parts]
        starts, ends = np.hstack(found)
        return starts, ends
    differs: Mask = (old_words[words] ^ new_words[words]).view(np.uint8) != 0
    joined = (np.diff(words) == 1) & (words[1:] % (page_size // 8) != 0)
    before, after = np.zeros_like(differs), np.zeros_like(differs)
    before[1:] = differs[:-1]
    before[8::8] &= joined
    after[:-1] = differs[1:]
    after[7:-1:8] &= joined
    starts = _positions(words, differs & ~before)
    ends = _positions(words, differs & ~after) + 1
    apart = (starts[1:] - ends[:-1] > 1) | (starts[1:] // page_size > starts[:-1] // page_size)
    return starts[np.append(True, apart)], ends[np.append(apart, True)]


def _runs_of_bytes(old: Bytes, new: Bytes) -> Indexes:
    """Return where runs of changed bytes start and end, as (2, runs), by comparing every byte."""
    count, stride = len(new), new.shape[1] + 1
    # An unchanged byte before each page, and after the last, ends runs at the page's border.
    differs = np.zeros(count * stride + 1, np.uint8)
    of_pages = differs[:-1].reshape(count, stride)[:, 1:]
    np.not_equal(old, new, out=of_pages.view(np.bool_))
    differs[1:-1] |= differs[:-2] & differs[2:]
    differs[::stride] = 0
    edges = np.flatnonzero(differs[1:] != differs[:-1])
    starts = edges[::2] - edges[::2] // stride
    return np.stack((starts, starts + edges[1::2] - edges[::2]))


def _positions(words: Indexes, mask: Mask) -> Indexes:
    found = np.flatnonzero(mask)
    return np.asarray(words[found >> 3] * 8 + (found & 7))


def _put_lengths(data: Bytes, at: Indexes, values: Indexes) -> Indexes:
    """Write the ULEB128 `values`, each at its position, and return the positions after them."""
    two = values >= _ONE_BYTE
    data[at] = values.astype(np.uint8) & 0x7F | two.view(np.uint8) << 7
    data[at[two] + 1] = values[two] >> 7
    return at + 1 + two


def _copy_runs(target: Bytes, to: Indexes, source: Bytes, start: Indexes, lengths: Indexes) -> None:
    """Copy `lengths[i]` bytes from `source[start[i]]` on to `target[to[i]]` on; no run overlaps."""
    long = lengths >= _LONG_RUN
    _copy_each(target, to[long], source, start[long], lengths[long])
    short = ~long
    to, start, lengths = to[short], start[short], lengths[short]
    # Many runs have one byte and are complete after this.
    target[to] = source[start]
    more = lengths > 1
    to, start, lengths = to[more] + 1, start[more] + 1, lengths[more] - 1
    behind = np.cumsum(lengths)
    each = np.arange(behind[-1] if len(behind) else 0)
    before = behind - lengths
    target[each + np.repeat(to - before, lengths)] = source[
        each + np.repeat(start - before, lengths)
    ]


def _copy_each(target: Bytes, to: Indexes, source: Bytes, start: Indexes, lengths: Indexes) -> None:
    """Copy runs like `_copy_runs`, one after the other, so that targets may overlap."""
    for here, there, size in zip(to.tolist(), start.tolist(), lengths.tolist(), strict=True):
        target[here : here + size] = source[there : there + size]


def read_runs(data: Bytes, starts: Indexes, sizes: Indexes, page_size: int) -> Runs:
    """Return the runs of the encodings in `data`, one per page; everything is validated.

    `starts`, `sizes` (n,): position and bytes of each encoding. Raises XbzrleError.
    """
    found: list[tuple[Indexes, Indexes, Indexes, Indexes]] = []
    page = np.flatnonzero(sizes)
    position, end = starts[page], starts[page] + sizes[page]
    start = np.zeros_like(page)
    while len(page) > _FEW:
        first = position == starts[page]
        gap, position = _read_lengths(data, page, position, end)
        start = start + gap
        _refuse(page, ~first & (gap == 0), "an empty run of unchanged bytes")
        length, position = _read_lengths(data, page, position, end)
        _refuse(page, length == 0, "an empty run of changed bytes")
        _refuse(page, start + length > page_size, "a run outside the page")
        _refuse(page, position + length > end, "a run longer than its encoding")
        found.append((page, start, length, position))
        start, position = start + length, position + length
        more = position < end
        page, start, position, end = page[more], start[more], position[more], end[more]
    for one in range(len(page)):
        place = (int(position[one]), int(end[one]), int(start[one]))
        begun = place[0] > starts[page[one]]
        found += [_read_page(data.data, int(page[one]), place, page_size, begun=begun)]
    return _in_order(found)


def read_run(run: XbzrleRun, page_size: int) -> Runs:
    """Return the runs of all encodings of a run of records. Raises StreamError."""
    try:
        return read_runs(run.data, run.starts, run.sizes, page_size)
    except XbzrleError as error:
        raise bad_encoding(error, run.encoding_offset(error.index)) from None


def bad_encoding(error: XbzrleError, offset: int) -> StreamError:
    """Return the StreamError for an encoding at `offset` in the stream."""
    return StreamError(f"XBZRLE: {error.message}", offset=offset, section=SECTION_NAME)


def _in_order(found: list[tuple[Indexes, Indexes, Indexes, Indexes]]) -> Runs:
    if not found:
        none = np.empty(0, np.intp)
        return Runs(none, none, none, none)
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return Runs(*(column[order] for column in columns))


def _read_lengths(
    data: Bytes, page: Indexes, position: Indexes, end: Indexes
) -> tuple[Indexes, Indexes]:
    """Return one length per page, and the positions after them."""
    # At least one byte follows either length of a pair.
    _refuse(page, end - position < 2, "it ends within a run")
    low = data[position].astype(np.intp)
    two = low >= _ONE_BYTE
    high = np.where(two, data[position + 1], 0).astype(np.intp)
    _refuse(page, high >= _ONE_BYTE, "a length above 14 bits")
    return low & 0x7F | high << 7, position + 1 + two


def _refuse(page: Indexes, wrong: Mask, message: str) -> None:
    if wrong.any():
        raise XbzrleError(int(page[wrong.argmax()]), message)


def _read_page(
    view: memoryview, page: int, place: tuple[int, int, int], page_size: int, *, begun: bool
) -> tuple[Indexes, Indexes, Indexes, Indexes]:
    """Return the runs of one page, read from `place`: position, end, and start in the page."""
    position, end, start = place
    found: list[tuple[int, int, int, int]] = []
    while position < end:
        gap, position = _read_length(view, page, position, end)
        if begun and not gap:
            raise XbzrleError(page, "an empty run of unchanged bytes")
        start += gap
        length, position = _read_length(view, page, position, end)
        if not length:
            raise XbzrleError(page, "an empty run of changed bytes")
        if start + length > page_size:
            raise XbzrleError(page, "a run outside the page")
        if position + length > end:
            raise XbzrleError(page, "a run longer than its encoding")
        found.append((page, start, length, position))
        start, position, begun = start + length, position + length, True
    columns = np.array(found, np.intp).reshape(-1, 4).T
    return columns[0], columns[1], columns[2], columns[3]


def _read_length(view: memoryview, page: int, position: int, end: int) -> tuple[int, int]:
    if end - position < 2:
        raise XbzrleError(page, "it ends within a run")
    low = view[position]
    if low < _ONE_BYTE:
        return low, position + 1
    high = view[position + 1]
    if high >= _ONE_BYTE:
        raise XbzrleError(page, "a length above 14 bits")
    return low & 0x7F | high << 7, position + 2


def apply(ram: Bytes, numbers: Indexes, data: Bytes, runs: Runs) -> None:
    """Apply `runs` of `data` to the pages `ram[numbers]` of a contiguous `ram` (N, page_size)."""
    to = numbers[runs.page] * ram.shape[1] + runs.start
    # If a page occurs twice, its changes have to be applied in order.
    copy = _copy_runs if len(np.unique(numbers)) == len(numbers) else _copy_each
    copy(ram.reshape(-1), to, data, runs.source, runs.length)
