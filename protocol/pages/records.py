"""Page records of `ram` in bulk: laid out and taken apart with numpy, in one step a run.

The records are those declared in `ram` (`plain_record`, `zero_record`); tests prove them equal.
A run is records of one kind and block, of which all but perhaps the first are CONTINUE: they
stand 8 + page_size bytes (plain) or 9 bytes (zero) apart.
"""

from __future__ import annotations

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
_LOOK_SINGLY = 4
"""Records looked at one by one before any array is made: the run may be short."""


def plain_size(count: int, page_size: int, name: bytes | None) -> int:
    """Bytes that `pack_plain` writes for `count` pages, in bytes of `page_size`."""
    return count * (RECORD_HEADER_SIZE + page_size) + _name_size(name)


def zero_size(count: int, name: bytes | None) -> int:
    """Bytes that `pack_zero` writes for `count` pages."""
    return count * ZERO_STRIDE + _name_size(name)


def _name_size(name: bytes | None) -> int:
    return 0 if name is None else 1 + len(name)


def pack_plain(
    out: Buffer, name: bytes | None, offsets: npt.NDArray[np.uint64], pages: npt.NDArray[np.uint8]
) -> int:
    """Write PAGE records for `pages` (n, page_size) of one block; how many bytes.

    `offsets` (n,): where in the block the pages belong, in bytes. `name`: of the block, for the
    first record; None: that one, too, continues the block of the record before it in the stream.
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
    """As `pack_plain`, for the pages `ram[indexes]` of a contiguous `ram` (N, page_size)."""
    records = _plain_records(out, name, offsets, ram.shape[1])
    records["page"] = ram.view(records.dtype["page"])[:, 0][indexes]
    return plain_size(len(offsets), ram.shape[1], name)


def pack_zero(
    out: Buffer, name: bytes | None, offsets: npt.NDArray[np.uint64], fill: int = 0
) -> int:
    """Write ZERO records, of pages that hold nothing but the byte `fill`; how many bytes."""
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
    """Lay out everything but the bodies; the records as an array, to put the bodies into.

    The name stands between the first record's header and its body, so the array begins where the
    first header would stand without it, and that header is written over by the name's last bytes.
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
    """Page offsets of a run: `first`, and of the whole PAGE|CONTINUE records from `position` on."""
    return _parse(data, position, page_size, first, None)


def parse_zero(
    data: npt.NDArray[np.uint8], position: int, page_size: int, first: int, fill: int
) -> npt.NDArray[np.uint64]:
    """As `parse_plain`, of ZERO|CONTINUE records with this `fill`."""
    return _parse(data, position, page_size, first, fill)


def plain_pages(
    data: npt.NDArray[np.uint8], position: int, count: int, page_size: int
) -> npt.NDArray[np.uint8]:
    """The pages (count, page_size) of a run, the first at `position`: a view, nothing is copied."""
    strides = (RECORD_HEADER_SIZE + page_size, 1)
    return np.ndarray((count, page_size), np.uint8, data, offset=position, strides=strides)


def _parse(
    data: npt.NDArray[np.uint8], position: int, page_size: int, first: int, fill: int | None
) -> npt.NDArray[np.uint64]:
    """`fill` None: plain records."""
    flags, stride = _ZERO, ZERO_STRIDE
    if fill is None:
        flags, stride = _PLAIN, RECORD_HEADER_SIZE + page_size
    mask, view = page_size - 1, data.data
    left = max(0, (len(view) - position) // stride)

    def offset_of(index: int) -> int:
        """Of a record; negative where it is none of the run."""
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
    # The last record of what is likely the run; whether all before it belong is seen below.
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
