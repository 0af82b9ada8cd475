"""Write at an offset of a file; find the parts of a file that are not holes, and make holes."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
"""Flags of fallocate, from <linux/falloc.h>."""
_libc = ctypes.CDLL(None, use_errno=True)


def write_at(fd: int, data: bytes | memoryview, place: int) -> None:
    """Write all of `data` at the offset `place`. Raises OSError."""
    done = os.pwrite(fd, data, place)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], place + done)


def next_data(fd: int, position: int) -> int | None:
    """Return the first offset from `position` on that is in no hole.

    Return None if only a hole follows, or the end. Raises OSError, also where the file system knows
    nothing of holes.
    """
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def data_parts(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield first and last offset (exclusive) of each part between two offsets that is no hole.

    Raises OSError.
    """
    while start < end:
        data = next_data(fd, start)
        if data is None or data >= end:
            return
        start = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        yield data, start


def clear(fd: int, start: int, end: int) -> None:
    """Make the bytes between two offsets zero: a hole, where the file system knows holes.

    A part that is a hole stays one. Raises OSError.
    """
    data = next_data(fd, start)
    if data is None or data >= end:
        return
    offset, length = ctypes.c_int64(start), ctypes.c_int64(end - start)
    if _libc.fallocate(ctypes.c_int(fd), _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return
    number = ctypes.get_errno()
    if number != errno.EOPNOTSUPP:
        raise OSError(number, os.strerror(number))
    write_at(fd, bytes(end - start), start)
