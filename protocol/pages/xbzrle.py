"""XBZRLE: a page as its difference to the page that the destination has.

An encoding is pairs of runs: the length of a run of unchanged bytes, the length of a run of changed
ones, and these bytes. Lengths are ULEB128 of one or two bytes; what stays unchanged at the end is
left out. Source: QEMU's documentation, docs/xbzrle.txt.

Both directions work on batches: numpy finds or reads the runs of all pages at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import StreamError
from ..events import XbzrleRun
from ..wire.marks import RamFlag
from ..wire.ram import RECORD_HEADER_SIZE, SECTION_NAME, XBZRLE_ENCODING
from .records import Buffer

Bytes = npt.NDArray[np.uint8]
Indexes = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

RECORD_HEAD = np.dtype([("header", ">u8"), ("encoding", "u1"), ("length", ">u2")])
"""What stands before the encoded bytes, where the record continues a block."""

_HEAD = struct.Struct(">QBH")
_CONTINUED = int(RamFlag.XBZRLE | RamFlag.CONTINUE)
_MAX_LENGTH = (1 << 14) - 1
"""Of a run: what two bytes of ULEB128 hold."""
_ONE_BYTE = 128
_LONG_RUN = 32
"""Bytes from which on a run is cheaper to copy on its own."""
_FEW = 12
"""Pages from which on reading runs is worth a step of numpy for all."""
_MANY_WORDS = 1 / 3
"""Of all words: where more changed, comparing bytes costs less than looking into the words."""
_STEP = 256 << 10
"""Bytes compared at once: what fits a cache, and needs no fresh memory each time."""


class XbzrleError(ValueError):
    """An encoding is not valid; `index`: of the page in its batch."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index
        self.message = message


@dataclass(frozen=True)
class Runs:
    """Runs of bytes that change, in the order of pages: each of these arrays has one element a run.

    `page`: index in the batch; `start`: in the page; `length` in bytes; `source`: where in the
    bytes of all encodings the new bytes stand.
    """

    page: Indexes
    start: Indexes
    length: Indexes
    source: Indexes


class Delta:
    """The differences of `new` pages to `old` ones, both (n, page_size), contiguous.

    `sizes` (n,): bytes of the encodings; 0: the page is unchanged. `overflow` (n,): as a plain page
    it would not be longer. Neither array may change before `pack`.
    """

    def __init__(self, old: Bytes, new: Bytes) -> None:
        count, page_size = new.shape
        self._new = new
        starts, ends = _changed_runs(old, new)
        self._pages = starts // page_size
        self._starts = starts
        self._lengths = ends - starts
        # What comes before a run: of the same page the run before it, or the beginning.
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
        """Bytes that `pack` writes."""
        records = int(self.encoded.sum())
        if not records:
            return 0
        name_size = 0 if name is None else 1 + len(name)
        return name_size + records * RECORD_HEAD.itemsize + int(self.sizes[self.encoded].sum())

    def pack(self, out: Buffer, name: bytes | None, offsets: npt.NDArray[np.uint64]) -> int:
        """Write XBZRLE records of the `encoded` pages; how many bytes.

        `offsets` (n,): where in the block each page belongs, in bytes. `name`: of the block, for
        the first record; None: it continues the block of the record before it.
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
        """All but the encodings; how far the first record's name shifts what stands behind it."""
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
    """Up to `count` whole XBZRLE|CONTINUE records that follow each other from `position`.

    Of each: the page's offset in its block, and where its encoding begins and its bytes. Ends
    before whatever is no such record, or is longer than a page.
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
    """Where runs of changed bytes start and end, counted over all pages.

    A single unchanged byte between two changed ones is cheaper sent than left out. Whole words are
    compared first: most do not change, and only the others are looked into.
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
    """The same, as (2, runs)."""
    count, stride = len(new), new.shape[1] + 1
    # Before each page, and behind the last, stands a byte that did not change: runs end there.
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
    """Write ULEB128 `values`, each at its place; the places behind them."""
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
    # Many runs are one byte, for which this is all.
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
    """As `_copy_runs`, one after the other: they may overlap."""
    for here, there, size in zip(to.tolist(), start.tolist(), lengths.tolist(), strict=True):
        target[here : here + size] = source[there : there + size]


def read_runs(data: Bytes, starts: Indexes, sizes: Indexes, page_size: int) -> Runs:
    """The runs of encodings that stand in `data`, one a page; all of it is checked.

    `starts`, `sizes` (n,): where each begins, and its bytes. Raises XbzrleError.
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
    """The changes of a whole run of records. Raises StreamError."""
    try:
        return read_runs(run.data, run.starts, run.sizes, page_size)
    except XbzrleError as error:
        raise bad_encoding(error, run.encoding_offset(error.index)) from None


def bad_encoding(error: XbzrleError, offset: int) -> StreamError:
    """The error of the stream in which the encoding stands at `offset`."""
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
    """A length of each page, and the positions behind them."""
    # Behind either length of a pair stands at least one byte.
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
    """The runs of one page from `place` on: position, end, and start in the page."""
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
    """Change the pages `ram[numbers]` of a contiguous `ram` (N, page_size) by `runs` of `data`."""
    to = numbers[runs.page] * ram.shape[1] + runs.start
    # A page that comes twice takes its changes in their order.
    copy = _copy_runs if len(np.unique(numbers)) == len(numbers) else _copy_each
    copy(ram.reshape(-1), to, data, runs.source, runs.length)
