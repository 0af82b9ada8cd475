"""Finds the differing pages of a RAM block in two guests, in steps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ...transport.sparse import next_data
from ..rebuild.guest import RebuildError

STEP = 4 << 20
"""The number of bytes that are compared at once: a multiple of any page size."""
ONLY_A, ONLY_B = "only in the first", "only in the second"

_Name = TypeVar("_Name")


def names_of_both(one: Iterable[_Name], other: Iterable[_Name]) -> list[_Name]:
    """Return the names that are in either, in the order of the first, then the second."""
    return list(dict.fromkeys([*one, *other]))


def differing(
    one: int, other: int, length: int, page_size: int
) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Compare two files of `length` bytes, given by descriptor, wherever either has data.

    Yields offsets in rising order, each with a mask (n,) that is True for differing pages from
    there on. Raises RebuildError if a file becomes shorter in the meantime.
    """
    for start in _steps(one, other, length):
        size = min(STEP, length - start)
        pages = [_pages(fd, start, size, page_size) for fd in (one, other)]
        yield start, (pages[0] != pages[1]).any(axis=1)


def _steps(one: int, other: int, length: int) -> Iterator[int]:
    """Yield the start of each step in which either file has data; holes in both files are equal."""
    start = 0
    while (data := min(_next_data(one, start), _next_data(other, start))) < length:
        start = data // STEP * STEP
        yield start
        start += STEP


def _pages(fd: int, start: int, size: int, page_size: int) -> npt.NDArray[np.uint8]:
    """Return the pages as an array (n, page size).

    The file is read and not mapped, because a file that shrinks would cause a SIGBUS.
    """
    data = os.pread(fd, size, start)
    if len(data) != size:
        raise RebuildError("a file became shorter while it was compared")
    return np.frombuffer(data, np.uint8).reshape(-1, page_size)


def _next_data(fd: int, position: int) -> int:
    """Return the first offset from `position` on that is not in a hole, or 1 << 63 if there is
    none.
    """
    try:
        found = next_data(fd, position)
    except OSError:
        # The file has no support for holes.
        return position
    return 1 << 63 if found is None else found
