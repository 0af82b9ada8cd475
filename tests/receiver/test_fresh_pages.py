"""Pages that are put into RAM which holds nothing yet."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmferry.guest.mapping import is_hole, map_block
from vmferry.guest.parts import RamBlock
from vmferry.receiver.fresh_pages import FreshPages
from vmferry.transport.spill import FileError

PAGE = 4096
COUNT = 3000


@pytest.fixture
def block() -> Iterator[RamBlock]:
    """Return RAM of which page 7 is there already."""
    fd = os.memfd_create("ram")
    os.ftruncate(fd, COUNT * PAGE)
    os.pwrite(fd, b"x" * PAGE, 7 * PAGE)
    yield RamBlock("ram", COUNT * PAGE, PAGE, fd)
    os.close(fd)


def pages(count: int, stride: int) -> npt.NDArray[np.uint8]:
    """Return pages that stand `stride` bytes apart, as those of records do."""
    data = np.random.default_rng(count).integers(0, 256, count * stride, np.uint8)
    return np.ndarray((count, PAGE), np.uint8, data, strides=(stride, 1))


def pieces(data: npt.NDArray[np.uint8]) -> list[memoryview]:
    """Return each page as a piece of memory."""
    return [page.data for page in data]


def test_what_is_there_is_not_fresh(block: RamBlock) -> None:
    """Broken: a page that exists would be written in the slow way."""
    fresh = FreshPages(block)
    assert fresh.all_fresh(0, 7)
    assert not fresh.all_fresh(0, 8)
    assert fresh.all_fresh(8, COUNT - 8)
    fresh.written(np.array([100, 5], np.intp))
    assert not fresh.all_fresh(0, 7)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(8, 400), count=st.integers(1, 2500))
def test_pages_are_where_they_belong(block: RamBlock, first: int, count: int) -> None:
    """Broken: pages would be elsewhere, or others of them be allocated."""
    os.ftruncate(block.fd, 0)
    os.ftruncate(block.fd, COUNT * PAGE)
    fresh, data = FreshPages(block), pages(count, PAGE + 8)
    assert fresh.write(first, pieces(data))
    ram = map_block(block).reshape(-1, PAGE)
    assert (ram[first : first + count] == data).all()
    assert is_hole(block, 0, first * PAGE)
    assert is_hole(block, (first + count) * PAGE, COUNT * PAGE)
    assert not fresh.all_fresh(first, 1)


def test_short_writes_go_on(block: RamBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: where a system writes less than asked for, pages would be lost or displaced."""
    write = os.pwritev

    def some(fd: int, pieces: list[memoryview], place: int) -> int:
        whole = b"".join(pieces)
        return write(fd, [whole[: max(1, len(whole) * 2 // 3)]], place)

    monkeypatch.setattr(os, "pwritev", some)
    data = pages(50, PAGE + 8)
    assert FreshPages(block).write(20, pieces(data))
    assert (map_block(block).reshape(-1, PAGE)[20:70] == data).all()


def test_memory_that_takes_no_writes(block: RamBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a guest in huge pages, which can only be mapped, could not arrive."""

    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "pwritev", refuse)
    fresh = FreshPages(block)
    assert not fresh.write(20, pieces(pages(5, PAGE)))
    assert not fresh.all_fresh(20, 1)


def test_other_failures_are_named(block: RamBlock) -> None:
    """Broken: a traceback, or a page that is missing."""
    closed = RamBlock("ram", COUNT * PAGE, PAGE, os.open("/dev/null", os.O_RDONLY))
    fresh = FreshPages(block)
    fresh._block = closed
    with pytest.raises(FileError) as error:
        fresh.write(20, pieces(pages(5, PAGE)))
    assert error.value.line == "RAM block ram: Bad file descriptor"
    os.close(closed.fd)
