"""Blocks in anonymous memory, and synthetic guests that end with their test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from vmferry.guest.parts import RamBlock
from vmferry.guest.synthetic import SyntheticGuest


@pytest.fixture
def make_block() -> Iterator[Callable[[int], RamBlock]]:
    """Return a function that makes RAM blocks of so many bytes."""
    made: list[RamBlock] = []

    def make(length: int) -> RamBlock:
        fd = os.memfd_create("block")
        os.ftruncate(fd, length)
        made.append(RamBlock("block", length, 4096, fd))
        return made[-1]

    yield make
    for block in made:
        os.close(block.fd)


@pytest.fixture
def make_guest() -> Iterator[Callable[[str], SyntheticGuest]]:
    """Yield a function that makes synthetic guests from their options."""
    made: list[SyntheticGuest] = []

    def make(text: str) -> SyntheticGuest:
        made.append(SyntheticGuest.parse(text))
        return made[-1]

    yield make
    for guest in made:
        guest.close()
