"""Find where the records of `ram` continue after damage, by chains of headers.

In a chain, each header leads to the next. The size of a page record follows from its header, so
each sound record leads to the next one. Bytes written by a guest may look like records, too, but on
the wire a header of 8 bytes precedes each page: what looks like records within one page does not
continue in the next one. So a chain counts only if it is longer than two pages, or ends exactly
where RAM is known to end. If two chains overlap and never meet, neither counts, unless one is in
step with the records before the damage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..events import RamBlock
from ..pages import zlib_pages
from ..wire.marks import RamFlag, SectionType
from ..wire.ram import COMPRESSED_HEAD_SIZE, RECORD_HEADER_SIZE, XBZRLE_ENCODING, XBZRLE_HEAD_SIZE
from ..wire.stream import section_footer, section_part

_CONTINUE = int(RamFlag.CONTINUE)
_PAGE, _ZERO = int(RamFlag.PAGE), int(RamFlag.ZERO)
_XBZRLE, _COMPRESSED = int(RamFlag.XBZRLE), int(RamFlag.COMPRESS_PAGE)
_EOS, _FLUSH = int(RamFlag.EOS), int(RamFlag.MULTIFD_FLUSH)
_PAGES = (_PAGE, _ZERO, _XBZRLE, _COMPRESSED)
_NEAR = 1 << 16
"""Distance in bytes within which the last two bytes of a header identify its page.

Two headers with the same last two bytes are of pages at least this far apart. So a header of which
damage spared only these bytes still names its page, if that is within this distance before the page
of the next header.
"""

_Indexes = npt.NDArray[np.intp]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """The properties of one stream that determine the shape of its records.

    `page_size`: bytes; `blocks`: the RAM blocks by their names on the wire; `section_id`: of `ram`;
    `footers`: whether sections have them.
    """

    page_size: int
    blocks: Mapping[bytes, RamBlock]
    section_id: int
    footers: bool = True

    @property
    def min_chain(self) -> int:
        """Return the bytes from which on a chain cannot lie in a guest's pages by chance."""
        return 2 * (RECORD_HEADER_SIZE + self.page_size) + 1

    @property
    def limit(self) -> int:
        """Return the bytes of the largest block, beyond which no page lies."""
        return max(block.length for block in self.blocks.values())


@dataclass(frozen=True)
class Step:
    """The rhythm of the records before the damage, which were of one block and `stride` bytes each.

    The next one would begin at `position` (it may lie before the view), for the page at `address`.
    """

    position: int
    stride: int
    address: int


@dataclass(frozen=True)
class Found:
    """The place where records continue.

    `position`: in the view; `block`: the block that the first record names, or None if the record
    has the flag CONTINUE.
    """

    position: int
    block: RamBlock | None


@dataclass(frozen=True)
class _Candidates:
    """Everything that may be a record, in order: position, be64, position of the next record.

    `names`: the blocks that records name, by position; `follows`: the index of the next record, or
    the record's own index if there is none.
    """

    positions: _Indexes
    values: npt.NDArray[np.uint64]
    nexts: _Indexes
    names: dict[int, RamBlock]
    follows: _Indexes


def find_records(
    view: memoryview, layout: Layout, step: Step | None = None, ram_end: int | None = None
) -> Found | None:
    """Return where in `view` records of `ram` continue for certain, or None if nowhere.

    `step`: the rhythm of the records before the damage. A record is certain if its distance to them
    in whole records equals its distance in pages; one at a distance of whole plain records is
    preferred. `ram_end`: the position after the footer of the section's last piece, if that is
    known.
    """
    found = _candidates(view, layout)
    if not len(found.positions):
        return None
    last = _last_of_chain(found.follows)
    ends = found.nexts[last]
    accepted = ends - found.positions >= layout.min_chain
    if ram_end is not None:
        accepted |= ends == ram_end
    # A chain begins with a page: the end of a piece may follow any bytes.
    accepted &= _is_page(found.values, layout)
    (indexes,) = np.nonzero(accepted)
    if not len(indexes):
        return None
    first, stride = int(indexes[0]), RECORD_HEADER_SIZE + layout.page_size
    stepped = None if step is None else _in_step(found, indexes, layout, step)
    if stepped is not None:
        if last[first] != last[stepped.record] or stepped.certain:
            return stepped.found
        early = _begin(found, first, layout, stride)
        return min(early, stepped.found, key=lambda one: one.position)
    rivals = indexes[last[indexes] != last[first]]
    if len(rivals) and found.positions[rivals[0]] < ends[first]:
        return None
    return _begin(found, first, layout, stride)


class _Stepped(NamedTuple):
    """A record in step with those before the damage, and its index among the candidates.

    `certain`: its page is in step, too.
    """

    found: Found
    record: int
    certain: bool


def _in_step(found: _Candidates, indexes: _Indexes, layout: Layout, step: Step) -> _Stepped | None:
    lost, rest = np.divmod(found.positions[indexes] - step.position, step.stride)
    in_step = indexes[rest == 0]
    pages = (found.values[in_step] & ~np.uint64(layout.page_size - 1)).astype(np.intp)
    dense = in_step[pages == step.address + lost[rest == 0] * layout.page_size]
    if len(dense):
        position = int(found.positions[dense[0]])
        return _Stepped(Found(position, found.names.get(position)), int(dense[0]), True)
    if len(in_step) and step.stride == RECORD_HEADER_SIZE + layout.page_size:
        first = int(in_step[0])
        return _Stepped(_begin(found, first, layout, 1), first, False)
    return None


def leads_on(view: memoryview, layout: Layout, ram_end: int | None = None) -> bool:
    """Return whether a chain of records that counts begins with the first byte."""
    found = _candidates(view, layout)
    if not len(found.positions) or found.positions[0]:
        return False
    end = int(found.nexts[_last_of_chain(found.follows)[0]])
    return end >= layout.min_chain or end == ram_end


def _begin(found: _Candidates, first: int, layout: Layout, unsure: int) -> Found:
    """Return the first record of a chain that is certain.

    Damage may end within a header, and the rest of a damaged page may look like records that lead
    to the true ones. So among the records in the first `unsure` bytes, only those count from which
    on each one's page is shortly before that of the next.
    """
    chain = [first]
    limit = int(found.positions[first]) + unsure
    while int(found.positions[chain[-1]]) < limit:
        behind = int(found.follows[chain[-1]])
        if behind == chain[-1]:
            break
        chain.append(behind)
    start = len(chain) - 1
    while start > 1 and _is_confirmed(found, chain[start - 1], chain[start], layout):
        start -= 1
    if start == 1 and _is_near(found, chain[0], chain[1], layout):
        start = 0
    index = chain[start]
    position = int(found.positions[index])
    # Names of earlier records do not count: they may not be records.
    return Found(position, found.names.get(position))


def _is_confirmed(found: _Candidates, one: int, other: int, layout: Layout) -> bool:
    """Return whether the record `other`, to which `one` leads, confirms `one`."""
    mask = np.uint64(layout.page_size - 1)
    flags = [int(found.values[index] & mask) for index in (one, other)]
    if any(flag & ~_CONTINUE not in _PAGES for flag in flags) or not flags[1] & _CONTINUE:
        # The end of a piece, or a name, is too long to occur by chance.
        return True
    return _is_near(found, one, other, layout)


def _is_near(found: _Candidates, one: int, other: int, layout: Layout) -> bool:
    """Return whether the page of record `one` is shortly before that of the next one, `other`."""
    mask = np.uint64(layout.page_size - 1)
    flags = int(found.values[other] & mask)
    if flags & ~_CONTINUE not in _PAGES or not flags & _CONTINUE:
        return False
    here, there = (int(found.values[index] & ~mask) for index in (one, other))
    near = 0 < there - here <= _NEAR and here >= _NEAR
    return there - here == layout.page_size or near


def _is_page(values: npt.NDArray[np.uint64], layout: Layout) -> _Mask:
    kinds = values & np.uint64(layout.page_size - 1) & ~np.uint64(_CONTINUE)
    return np.isin(kinds, np.array(_PAGES, np.uint64))


def _last_of_chain(follows: _Indexes) -> _Indexes:
    """Return, for each record, the index of the last one that it leads to."""
    while True:
        further = follows[follows]
        if np.array_equal(further, follows):
            return follows
        follows = further


def _candidates(view: memoryview, layout: Layout) -> _Candidates:
    data = np.frombuffer(view, np.uint8)
    positions, values = _headers(data, layout)
    flags = values & np.uint64(layout.page_size - 1)
    kinds = (flags & ~np.uint64(_CONTINUE)).astype(np.intp)
    continued = (flags & np.uint64(_CONTINUE)) != 0
    bodies, names = positions + RECORD_HEADER_SIZE, {}
    is_page = np.isin(kinds, _PAGES)
    kept = ~is_page | continued
    for index in np.flatnonzero(is_page & ~continued).tolist():
        position = int(bodies[index])
        size = 1 + view[position] if position < len(view) else 0
        block = layout.blocks.get(bytes(view[position + 1 : position + size]))
        if block is not None and int(values[index]) - int(flags[index]) < block.length:
            bodies[index] += size
            names[int(positions[index])] = block
            kept[index] = True
    nexts = np.full(len(positions), -1, np.intp)
    for kind, read in _SIZES.items():
        of_kind = np.flatnonzero((kinds == kind) & kept)
        nexts[of_kind] = read(data, bodies[of_kind], layout)
    nexts = np.where(kinds == _EOS, _behind_eos(view, positions, kinds, layout), nexts)
    good = nexts >= 0
    positions, values, nexts = positions[good], values[good], nexts[good]
    places = np.searchsorted(positions, nexts)
    within = np.minimum(places, len(positions) - 1)
    own = np.arange(len(positions))
    if not len(positions):
        return _Candidates(positions, values, nexts, names, own)
    # No page is sent twice in a row: repeated memory of a guest is not a chain.
    linked = (places < len(positions)) & (positions[within] == nexts) & (values[within] != values)
    return _Candidates(positions, values, nexts, names, np.where(linked, within, own))


def _headers(
    data: npt.NDArray[np.uint8], layout: Layout
) -> tuple[_Indexes, npt.NDArray[np.uint64]]:
    """Return positions and values of all be64 that may begin a record."""
    count = max(len(data) - RECORD_HEADER_SIZE + 1, 0)
    flags = [kind | more for kind in _PAGES for more in (0, _CONTINUE)]
    flags = [value for value in [*flags, _EOS, _FLUSH] if value < layout.page_size]
    low = np.zeros(256, np.bool_)
    low[np.array(flags) & 0xFF] = True
    # Addresses have zeros in the upper bytes, which little else has.
    maybe = low[data[7 : 7 + count]] & (data[:count] == 0) & (data[1 : 1 + count] == 0)
    positions = np.flatnonzero(maybe)
    values = np.ndarray((count,), ">u8", data, strides=(1,))[positions].astype(np.uint64)
    found = values & np.uint64(layout.page_size - 1)
    good = np.isin(found, np.array(flags, np.uint64)) & (values - found < np.uint64(layout.limit))
    alone = (found == _EOS) | (found == _FLUSH)
    good &= ~alone | (values == found)
    return positions[good], values[good]


def _plain_end(_: npt.NDArray[np.uint8], bodies: _Indexes, layout: Layout) -> _Indexes:
    return bodies + layout.page_size


def _zero_end(data: npt.NDArray[np.uint8], bodies: _Indexes, _: Layout) -> _Indexes:
    return np.where(bodies < len(data), bodies + 1, -1)


def _number(data: npt.NDArray[np.uint8], at: _Indexes, size: int) -> _Indexes:
    """Return the big-endian numbers of `size` bytes at these positions."""
    value = np.zeros(len(at), np.intp)
    for index in range(size):
        value = value << 8 | data[at + index].astype(np.intp)
    return value


def _xbzrle_end(data: npt.NDArray[np.uint8], bodies: _Indexes, layout: Layout) -> _Indexes:
    head = XBZRLE_HEAD_SIZE - RECORD_HEADER_SIZE
    # The head is the kind of the encoding in one byte, then its size.
    empty = XBZRLE_ENCODING << 8 * (head - 1)
    return _encoding_end(data, bodies, head, empty, layout.page_size)


def _compressed_end(data: npt.NDArray[np.uint8], bodies: _Indexes, layout: Layout) -> _Indexes:
    head = COMPRESSED_HEAD_SIZE - RECORD_HEADER_SIZE
    return _encoding_end(data, bodies, head, 0, zlib_pages.bound(layout.page_size))


def _encoding_end(
    data: npt.NDArray[np.uint8], bodies: _Indexes, head: int, empty: int, longest: int
) -> _Indexes:
    """Return the ends of encodings of up to `longest` bytes, or -1 where there is none.

    Before each are `head` bytes, whose big-endian number is its size plus `empty`.
    """
    here = bodies + head <= len(data)
    if not here.any():
        return np.full(len(bodies), -1, np.intp)
    size = _number(data, np.where(here, bodies, 0), head) - empty
    return np.where(here & (size >= 0) & (size <= longest), bodies + head + size, -1)


def _flush_end(_: npt.NDArray[np.uint8], bodies: _Indexes, __: Layout) -> _Indexes:
    return bodies


_SIZES = {
    _PAGE: _plain_end,
    _ZERO: _zero_end,
    _XBZRLE: _xbzrle_end,
    _COMPRESSED: _compressed_end,
    _FLUSH: _flush_end,
}


def _behind_eos(view: memoryview, positions: _Indexes, kinds: _Indexes, layout: Layout) -> _Indexes:
    """Return where the next piece's records begin, or where the footer ends.

    The former is after the footer and the header of the next piece; the latter applies if another
    section follows.
    """
    ends = np.full(len(positions), -1, np.intp)
    footer = section_footer(layout.section_id) if layout.footers else b""
    part = section_part(layout.section_id)
    heads = (part, bytes([SectionType.END]) + part[1:])
    for index in np.flatnonzero(kinds == _EOS).tolist():
        at = int(positions[index]) + RECORD_HEADER_SIZE
        if bytes(view[at : at + len(footer)]) != footer:
            continue
        at += len(footer)
        goes_on = bytes(view[at : at + len(part)]) in heads
        ends[index] = at + len(part) if goes_on else at
    return ends
