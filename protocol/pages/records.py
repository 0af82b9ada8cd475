"""Build and parse page records of `ram` in bulk, with one numpy operation per run.

The records are those declared in `wire.ram` (`plain_record`, `zero_record`); tests prove them
equal. A run consists of records of one kind and block, of which all but perhaps the first are
CONTINUE: they are 8 + page_size bytes (plain) or 9 bytes (zero) apart.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..wire.marks import RamFlag
from ..wire.ram import RECORD_HEADER_SIZE

Buffer: TypeAlias = memoryview | npt.NDArray[np.uint8]

_PLAIN = int(RamFlag.PAGE | RamFlag.CONTINUE)
_ZERO = int(RamFlag.ZERO | RamFlag.CONTINUE)
_CONTINUE = int(RamFlag.CONTINUE)

ZERO_STRIDE = RECORD_HEADER_SIZE + 1
_LOOK_FOR_RUN = 8
"""Number of records of one kind in succession after which more of them are expected."""
_LOOK_AT_FIRST = 256
"""Number of headers that are looked at together first, as the run may be short."""
_LOOK_SINGLY = 4
"""Number of records that are parsed one by one before an array is made, as a run may be short."""


def plain_size(count: int, page_size: int, name: bytes | None) -> int:
    """Return the bytes that `pack_plain` writes for `count` pages of `page_size` bytes."""
    return count * (RECORD_HEADER_SIZE + page_size) + _name_size(name)


def zero_size(count: int, name: bytes | None) -> int:
    """Return the bytes that `pack_zero` writes for `count` pages."""
    return count * ZERO_STRIDE + _name_size(name)


def _name_size(name: bytes | None) -> int:
    return 0 if name is None else 1 + len(name)


def pack_plain(
    out: Buffer, name: bytes | None, offsets: npt.NDArray[np.uint64], pages: npt.NDArray[np.uint8]
) -> int:
    """Write PAGE records for `pages` (n, page_size) of one block, and return how many bytes.

    `offsets` (n,): positions of the pages in the block, in bytes. `name`: of the block, for the
    first record; None if that record, too, continues the block of the record before it in the
    stream.
    """
    records = _plain_records(out, name, offsets, pages.shape[1])
    if pages.strides[1] != 1:
        pages = np.ascontiguousarray(pages)
    records["page"] = pages.view(records.dtype["page"])[:, 0]
    return plain_size(len(offsets), pages.shape[1], name)


def pack_plain_gather(
    out: Buffer,
    name: bytes | None,
    offsets: npt.NDArray[np.uint64],
    ram: npt.NDArray[np.uint8],
    indexes: npt.NDArray[np.intp],
) -> int:
    """Write PAGE records for the pages `ram[indexes]`, and return how many bytes.

    `ram`: contiguous, (N, page_size). The other arguments are those of `pack_plain`.
    """
    records = _plain_records(out, name, offsets, ram.shape[1])
    records["page"] = ram.view(records.dtype["page"])[:, 0][indexes]
    return plain_size(len(offsets), ram.shape[1], name)


def pack_zero(
    out: Buffer, name: bytes | None, offsets: npt.NDArray[np.uint64], fill: int = 0
) -> int:
    """Write ZERO records for pages filled with the byte `fill`, and return how many bytes."""
    records = _records(out, name, offsets, _ZERO, _ZERO_RECORD)
    records["fill"] = fill
    return zero_size(len(offsets), name)


def _plain_records(
    out: Buffer, name: bytes | None, offsets: npt.NDArray[np.uint64], page_size: int
) -> npt.NDArray[Any]:
    return _records(out, name, offsets, _PLAIN, _plain_record(page_size))


_ZERO_RECORD = np.dtype([("header", ">u8"), ("fill", "u1")])


@cache
def _plain_record(page_size: int) -> np.dtype[Any]:
    return np.dtype([("header", ">u8"), ("page", f"V{page_size}")])


def _records(
    out: Buffer,
    name: bytes | None,
    offsets: npt.NDArray[np.uint64],
    flags: int,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    """Write everything but the bodies, and return the records as an array for the bodies.

    The name lies between the first record's header and its body, so the array begins where the
    first header would be without it, and the name's last bytes overwrite that header.
    """
    data = np.frombuffer(out, np.uint8)
    shift = _name_size(name)
    records = np.ndarray((len(offsets),), dtype, data, offset=shift)
    records["header"] = offsets | np.uint64(flags)
    if name is not None:
        head = (
            (int(offsets[0]) | flags & ~_CONTINUE).to_bytes(RECORD_HEADER_SIZE, "big")
            + bytes([len(name)])
            + name
        )
        data[: len(head)] = np.frombuffer(head, np.uint8)
    return records


def parse_plain(
    data: npt.NDArray[np.uint8], position: int, page_size: int, first: int
) -> npt.NDArray[np.uint64]:
    """Return the page offsets of a run: `first`, then those of PAGE|CONTINUE records at `position`.

    The run ends before the first record that is not whole or not of that kind.
    """
    return _parse(data, position, page_size, first, None)


def parse_zero(
    data: npt.NDArray[np.uint8], position: int, page_size: int, first: int, fill: int
) -> npt.NDArray[np.uint64]:
    """Return the page offsets of a run: `first`, then those of ZERO|CONTINUE records at `position`.

    The run ends before the first record that is not whole, not of that kind, or has another `fill`.
    """
    return _parse(data, position, page_size, first, fill)


_HEADER = struct.Struct(">Q")


def parse_mixed(
    data: npt.NDArray[np.uint8], position: int, page_size: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Return the page offsets of PAGE|CONTINUE and ZERO|CONTINUE records from `position` on.

    The second array says which of them are ZERO. The content of the last PAGE may be missing. The
    kinds may alternate, so each header is read by itself: an array for each short run would take
    longer. Long runs are parsed at once.
    """
    headers: list[int] = []
    arrays: list[npt.NDArray[np.uint64]] = []
    view, mask, stride = data.data, page_size - 1, RECORD_HEADER_SIZE + page_size
    last, kind, same = len(view) - RECORD_HEADER_SIZE, 0, 0
    read, note = _HEADER.unpack_from, headers.append
    while position <= last:
        (header,) = read(view, position)
        flags = header & mask
        if flags == _PLAIN:
            position += stride
        elif flags == _ZERO and position < last:
            position += ZERO_STRIDE
        else:
            break
        note(header)
        if flags != kind:
            kind, same = flags, 0
            continue
        same += 1
        if same == _LOOK_FOR_RUN:
            step = stride if flags == _PLAIN else ZERO_STRIDE
            more = _headers_alike(data, position, step, mask, flags)
            position += len(more) * step
            arrays += [np.array(headers, np.uint64), more]
            headers.clear()
            same = 0
    arrays.append(np.array(headers, np.uint64))
    found = np.concatenate(arrays)
    return found & ~np.uint64(mask), (found & np.uint64(mask)) == _ZERO


def _headers_alike(
    data: npt.NDArray[np.uint8], position: int, step: int, mask: int, flags: int
) -> npt.NDArray[np.uint64]:
    """Return the headers with these flags that are `step` bytes apart from `position` on."""
    body = 1 if step == ZERO_STRIDE else 0
    left = max(0, (len(data) - position - RECORD_HEADER_SIZE - body) // step + 1)
    found, most = [np.empty(0, np.uint64)], _LOOK_AT_FIRST
    while left:
        count = min(left, most)
        headers: npt.NDArray[np.uint64] = np.ndarray(
            (count,), ">u8", data, offset=position, strides=(step,)
        )
        same = (headers & np.uint64(mask)) == np.uint64(flags)
        alike = count if same.all() else int(same.argmin())
        found.append(headers[:alike].astype(np.uint64))
        if alike < count:
            break
        # Most runs are short, and few of those that are not end soon.
        left, position, most = left - count, position + count * step, most * _LOOK_AT_FIRST
    return np.concatenate(found)


def plain_pages(
    data: npt.NDArray[np.uint8], position: int, count: int, page_size: int
) -> npt.NDArray[np.uint8]:
    """Return the pages (count, page_size) of a run as a view; the first page is at `position`."""
    strides = (RECORD_HEADER_SIZE + page_size, 1)
    return np.ndarray((count, page_size), np.uint8, data, offset=position, strides=strides)


def _parse(
    data: npt.NDArray[np.uint8], position: int, page_size: int, first: int, fill: int | None
) -> npt.NDArray[np.uint64]:
    """Return the page offsets of a run of ZERO records, or of PAGE records if `fill` is None."""
    flags, stride = _ZERO, ZERO_STRIDE
    if fill is None:
        flags, stride = _PLAIN, RECORD_HEADER_SIZE + page_size
    mask, view = page_size - 1, data.data
    left = max(0, (len(view) - position) // stride)

    def offset_of(index: int) -> int:
        """Return the page offset of record `index`, or -1 if it is not part of this run."""
        start = position + index * stride
        value = int.from_bytes(view[start : start + RECORD_HEADER_SIZE], "big")
        same = value & mask == flags and (fill is None or view[start + RECORD_HEADER_SIZE] == fill)
        return value ^ flags if same else -1

    singly = [first]
    for index in range(min(left, _LOOK_SINGLY)):
        offset = offset_of(index)
        if offset < 0:
            break
        singly.append(offset)
    if len(singly) <= _LOOK_SINGLY:
        return np.array(singly, np.uint64)
    # A binary search finds the likely end of the run; the check below proves all records before it.
    count = bisect_left(range(left), True, lo=_LOOK_SINGLY, key=lambda index: offset_of(index) < 0)
    headers: npt.NDArray[np.uint64] = np.ndarray(
        (count,), ">u8", data, offset=position, strides=(stride,)
    )
    offsets = np.empty(count + 1, np.uint64)
    offsets[0], offsets[1:] = first, headers
    behind = offsets[1:]
    same = (behind & np.uint64(mask)) == np.uint64(flags)
    if fill is not None:
        same &= data[position + RECORD_HEADER_SIZE : position + count * stride : stride] == fill
    behind ^= np.uint64(flags)
    return offsets if same.all() else offsets[: 1 + int(same.argmin())]
