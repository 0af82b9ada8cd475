"""Is a stream whole, and does it rebuild exactly this RAM."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..protocol import compress, events, xbzrle
from ..protocol.errors import StreamError
from .dump import read_events

FIRST_PAGES = 8
"""How many differing pages are named."""
STEP = 4 << 20
"""Bytes that are compared at once: a multiple of any page size."""


class VerifyError(Exception):
    """A file cannot be compared with the stream; one line."""


@dataclass(frozen=True)
class Comparison:
    """A RAM block beside a file: how many pages differ, and the offsets of the first ones."""

    block: str
    file: str
    count: int
    first: tuple[int, ...]

    @property
    def equal(self) -> bool:
        """Every page is the same."""
        return self.count == 0

    def describe(self) -> str:
        """One line."""
        where = ", ".join(f"{offset:#x}" for offset in self.first)
        more = ", ..." if self.count > len(self.first) else ""
        pages = "page differs" if self.count == 1 else "pages differ"
        return f"{self.block}: {self.count} {pages}, at {where}{more}"

    def as_json(self) -> dict[str, Any]:
        """Keys: block, file, equal, differing_pages, first_offsets."""
        return {
            "block": self.block,
            "file": self.file,
            "equal": self.equal,
            "differing_pages": self.count,
            "first_offsets": list(self.first),
        }


def valid_as_json(compared: Iterable[Comparison]) -> dict[str, Any]:
    """Keys: valid, error, ram."""
    ram = [comparison.as_json() for comparison in compared]
    return {"valid": True, "error": None, "ram": ram}


def invalid_as_json(error: StreamError) -> dict[str, Any]:
    """The same keys; of the error: offset, section, message."""
    found = {"offset": error.offset, "section": error.section, "message": error.message}
    return {"valid": False, "error": found, "ram": []}


class Rebuilt:
    """RAM as the stream builds it, in anonymous memory that takes only what is not zero."""

    def __init__(self, length: int, page_size: int) -> None:
        self.length = length
        self.page_size = page_size
        self._fd = os.memfd_create("vmferry-verify", os.MFD_CLOEXEC)
        # Nothing can be mapped where a block is empty.
        size = max(length, page_size)
        try:
            os.ftruncate(self._fd, size)
            flat = np.frombuffer(mmap.mmap(self._fd, size), np.uint8)[:length]
        except OSError:
            self.close()
            raise
        self._ram = flat.reshape(-1, page_size)
        self._written = np.zeros(len(self._ram), np.bool_)

    @property
    def ram(self) -> npt.NDArray[np.uint8]:
        """The block, page by page (n, page size)."""
        return self._ram

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last mapping."""
        os.close(self._fd)

    def apply(self, run: events.PageRun) -> None:
        """Put a run of pages in its place."""
        numbers = (run.offsets // np.uint64(self.page_size)).astype(np.intp)
        if run.data is None and run.fill == 0:
            # To write a zero, or only to read one, would take memory for the page.
            self._ram[numbers[self._written[numbers]]] = 0
            return
        self._ram[numbers] = run.fill if run.data is None else run.data
        self._written[numbers] = True

    def change(self, run: events.XbzrleRun, runs: xbzrle.Runs) -> None:
        """Change pages by a run of XBZRLE records, which was read as `runs`."""
        numbers = (run.offsets // np.uint64(self.page_size)).astype(np.intp)
        xbzrle.apply(self._ram, numbers, run.data, runs)
        self._written[numbers] = True

    def put(self, offsets: npt.NDArray[np.uint64], pages: npt.NDArray[np.uint8]) -> None:
        """Put `pages` (n, page size) in their places."""
        numbers = (offsets // np.uint64(self.page_size)).astype(np.intp)
        self._ram[numbers] = pages
        self._written[numbers] = True

    def compare(self, file: BinaryIO, block: str) -> Comparison:
        """With a file of the same length. Raises VerifyError."""
        size = file.seek(0, os.SEEK_END)
        if size != self.length:
            raise VerifyError(f"{file.name} has {size} bytes, RAM block {block} has {self.length}")
        count = 0
        first: list[int] = []
        for start in self._steps(file.fileno()):
            mask = (self._pages(self._fd, start) != self._pages(file.fileno(), start)).any(axis=1)
            count += int(mask.sum())
            missing = FIRST_PAGES - len(first)
            first += (start + np.flatnonzero(mask)[:missing] * self.page_size).tolist()
        return Comparison(block, file.name, count, tuple(first))

    def _steps(self, fd: int) -> Iterator[int]:
        """Where to compare: wherever either side has data. Holes on both sides are equal."""
        start = 0
        while (data := min(_next_data(self._fd, start), _next_data(fd, start))) < self.length:
            start = data // STEP * STEP
            yield start
            start += STEP

    def _pages(self, fd: int, start: int) -> npt.NDArray[np.uint8]:
        """(n, page size) read, not mapped: a file that shrinks meanwhile would be a SIGBUS."""
        wanted = min(STEP, self.length - start)
        data = os.pread(fd, wanted, start)
        if len(data) != wanted:
            raise VerifyError("a file became shorter while it was compared")
        return np.frombuffer(data, np.uint8).reshape(-1, self.page_size)


def _next_data(fd: int, position: int) -> int:
    """The first offset from `position` on that is in no hole; far away if there is none."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        # ENXIO: a hole up to the end. Others: not a file that may have holes.
        return 1 << 63 if error.errno == errno.ENXIO else position


def verify(stream: BinaryIO, files: dict[str, str], page_size: int = 4096) -> list[Comparison]:
    """Read all of it, and compare blocks with `files`, by name; `page_size` as in `read_events`.

    Raises StreamError when the stream is not valid, VerifyError when a file does not fit, OSError
    when one cannot be read.
    """
    with ExitStack() as stack:
        # A missing file is told before a long stream is read.
        opened = {block: stack.enter_context(open(path, "rb")) for block, path in files.items()}
        rebuilt = rebuild(read_events(stream, page_size), opened, stack)
        return [rebuilt[block].compare(file, block) for block, file in opened.items()]


def rebuild(
    found: Iterable[events.Event], blocks: Iterable[str], stack: ExitStack
) -> dict[str, Rebuilt]:
    """These blocks as the events of a whole stream build them; `stack` gives them back.

    Raises VerifyError where the stream does not bring one of them.
    """
    rebuilt: dict[str, Rebuilt] = {}
    absent: set[str] = set()
    page_size = 4096
    for event in found:
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            absent.discard(event.block.name)
            _apply(event, rebuilt.get(event.block.name), page_size)
        elif isinstance(event, events.RamBlocks):
            page_size = event.page_size
            lengths = {block.name: block.length for block in event.blocks}
            absent = {block.name for block in event.blocks if _may_be_absent(block)}
            for block in _known(blocks, lengths):
                rebuilt[block] = Rebuilt(lengths[block], page_size)
                stack.callback(rebuilt[block].close)
    _known(blocks, rebuilt)
    for block in absent.intersection(blocks):
        message = f"RAM block {block} is not in the stream: it is shared (x-ignore-shared)"
        raise VerifyError(message)
    return rebuilt


def _may_be_absent(block: events.RamBlock) -> bool:
    """With x-ignore-shared, where blocks carry an address, shared ones are left behind."""
    if block.mapped is not None:
        return not block.mapped.present
    return block.address is not None


def _apply(run: events.PageRun | events.EncodedRun, block: Rebuilt | None, page_size: int) -> None:
    """Put a run into its block; what it encodes is checked though nobody wants the block."""
    if isinstance(run, events.XbzrleRun):
        runs = xbzrle.read_run(run, page_size)
        if block is not None:
            block.change(run, runs)
    elif isinstance(run, events.CompressedRun):
        pages = compress.decompress(run, page_size)
        if block is not None:
            block.put(run.offsets, pages)
    elif block is not None:
        assert isinstance(run, events.PageRun)
        block.apply(run)


def _known(blocks: Iterable[str], lengths: Iterable[str]) -> Iterable[str]:
    """`blocks`, if the stream has them. Raises VerifyError."""
    for block in blocks:
        if block not in lengths:
            names = ", ".join(lengths) or "none"
            raise VerifyError(f"no RAM block {block!r} in the stream; it has {names}")
    return blocks
