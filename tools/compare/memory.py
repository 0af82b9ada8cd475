"""Comparing two guests: which pages of a RAM block differ, read in steps."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..rebuild.guest import RebuildError

STEP = 4 << 20
"""Bytes that are compared at once: a multiple of any page size."""
ONLY_A, ONLY_B = "only in the first", "only in the second"

_Name = TypeVar("_Name")


def names_of_both(one: Iterable[_Name], other: Iterable[_Name]) -> list[_Name]:
    """What either has, in the order of the first."""
    return list(dict.fromkeys([*one, *other]))


def differing(
    one: int, other: int, length: int, page_size: int
) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Compare two files of `length` bytes, given by descriptor, wherever either has data.

    Gives offsets in rising order, each with a mask (n,) of the pages from there on. Raises
    RebuildError where a file becomes shorter meanwhile.
    """
    for start in _steps(one, other, length):
        size = min(STEP, length - start)
        pages = [_pages(fd, start, size, page_size) for fd in (one, other)]
        yield start, (pages[0] != pages[1]).any(axis=1)


def _steps(one: int, other: int, length: int) -> Iterator[int]:
    """Holes on both sides are equal."""
    start = 0
    while (data := min(_next_data(one, start), _next_data(other, start))) < length:
        start = data // STEP * STEP
        yield start
        start += STEP


def _pages(fd: int, start: int, size: int, page_size: int) -> npt.NDArray[np.uint8]:
    """(n, page size) read, not mapped: a file that shrinks meanwhile would be a SIGBUS."""
    data = os.pread(fd, size, start)
    if len(data) != size:
        raise RebuildError("a file became shorter while it was compared")
    return np.frombuffer(data, np.uint8).reshape(-1, page_size)


def _next_data(fd: int, position: int) -> int:
    """The first offset from `position` on that is in no hole; far away if there is none."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        # ENXIO: a hole up to the end. Others: not a file that may have holes.
        return 1 << 63 if error.errno == errno.ENXIO else position
