"""Page records of `ram` in bulk: laid out and taken apart with numpy, in one step a run.

The records are those declared in `ram` (`plain_record`, `zero_record`); tests prove them equal.
A run is records of one kind and block, of which all but perhaps the first are CONTINUE: they
stand 8 + page_size bytes (plain) or 9 bytes (zero) apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .ram import RamFlag

Buffer: TypeAlias = memoryview | npt.NDArray[np.uint8]

HEADER_SIZE = 8
ZERO_STRIDE = HEADER_SIZE + 1
_LOOK_SINGLY = 4
_LOOK_AHEAD = (16, 128)
"""Records looked at one by one, and in the first steps behind those: the run may be short."""


def plain_size(count: int, page_size: int, name: bytes | None) -> int:
    """Bytes that `pack_plain` writes for `count` pages, in bytes of `page_size`."""
    return count * (HEADER_SIZE + page_size) + _name_size(name)


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
    records = _records(
        out, name, offsets, RamFlag.ZERO, np.dtype([("header", ">u8"), ("fill", "u1")])
    )
    records["fill"] = fill
    return zero_size(len(offsets), name)


def _plain_records(
    out: Buffer, name: bytes | None, offsets: npt.NDArray[np.uint64], page_size: int
) -> npt.NDArray[Any]:
    dtype = np.dtype([("header", ">u8"), ("page", f"V{page_size}")])
    return _records(out, name, offsets, RamFlag.PAGE, dtype)


def _records(
    out: Buffer,
    name: bytes | None,
    offsets: npt.NDArray[np.uint64],
    kind: RamFlag,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    """Lay out everything but the bodies; the records as an array, to put the bodies into.

    The name stands between the first record's header and its body, so the array begins where the
    first header would stand without it, and that header is written over by the name's last bytes.
    """
    data = np.frombuffer(out, np.uint8)
    shift = _name_size(name)
    records = np.ndarray((len(offsets),), dtype, data, offset=shift)
    records["header"] = offsets | np.uint64(kind | RamFlag.CONTINUE)
    if name is not None:
        head = (int(offsets[0]) | kind).to_bytes(HEADER_SIZE, "big") + bytes([len(name)]) + name
        data[: len(head)] = np.frombuffer(head, np.uint8)
    return records


def parse_plain(
    data: npt.NDArray[np.uint8], position: int, page_size: int
) -> npt.NDArray[np.uint64]:
    """Page offsets of the whole PAGE|CONTINUE records that follow each other from `position`."""
    return _parse(data, position, page_size, None)


def parse_zero(
    data: npt.NDArray[np.uint8], position: int, page_size: int, fill: int
) -> npt.NDArray[np.uint64]:
    """Page offsets of the ZERO|CONTINUE records with this `fill` that follow each other."""
    return _parse(data, position, page_size, fill)


def plain_pages(
    data: npt.NDArray[np.uint8], position: int, count: int, page_size: int
) -> npt.NDArray[np.uint8]:
    """The pages (count, page_size) of a run, the first at `position`: a view, nothing is copied."""
    strides = (HEADER_SIZE + page_size, 1)
    return np.ndarray((count, page_size), np.uint8, data, offset=position, strides=strides)


def _parse(
    data: npt.NDArray[np.uint8], position: int, page_size: int, fill: int | None
) -> npt.NDArray[np.uint64]:
    """`fill` None: plain records."""
    kind, stride = RamFlag.ZERO, ZERO_STRIDE
    if fill is None:
        kind, stride = RamFlag.PAGE, HEADER_SIZE + page_size
    flags = int(kind | RamFlag.CONTINUE)
    end = len(data) - stride
    few: list[int] = []
    view = data.data
    while len(few) < _LOOK_SINGLY and position <= end:
        value = int.from_bytes(view[position : position + HEADER_SIZE], "big")
        if value & (page_size - 1) != flags or fill not in (None, view[position + HEADER_SIZE]):
            return np.array(few, np.uint64)
        few.append(value - flags)
        position += stride
    many = _parse_many(data, position, stride, (page_size - 1, flags, fill))
    return np.concatenate([np.array(few, np.uint64), *many])


def _parse_many(
    data: npt.NDArray[np.uint8], position: int, stride: int, match: tuple[int, int, int | None]
) -> Iterator[npt.NDArray[np.uint64]]:
    """Pieces of the run at `position`; `match`: mask of the flags, the flags, the fill byte."""
    mask, flags, fill = match
    left = max(0, (len(data) - position) // stride)
    for step in (*_LOOK_AHEAD, left):
        count = min(step, left)
        if not count:
            return
        headers = np.ndarray((count,), ">u8", data, offset=position, strides=(stride,))
        values = headers.astype(np.uint64)
        same = (values & np.uint64(mask)) == np.uint64(flags)
        if fill is not None:
            same &= data[position + HEADER_SIZE : position + count * stride : stride] == fill
        run = count if same.all() else int(same.argmin())
        yield values[:run] ^ np.uint64(flags)
        if run < count:
            return
        position += run * stride
        left -= run
