"""Is a stream whole, and does it rebuild exactly this RAM."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..protocol import events
from .dump import read_events

FIRST_PAGES = 8
"""How many differing pages are named."""


class VerifyError(Exception):
    """A file cannot be compared with the stream; one line."""


@dataclass(frozen=True)
class Difference:
    """Pages of a block that differ from the file: how many, and the offsets of the first."""

    block: str
    count: int
    first: tuple[int, ...]

    def describe(self) -> str:
        """One line."""
        where = ", ".join(f"{offset:#x}" for offset in self.first)
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.block}: {self.count} pages differ, at {where}{more}"


class Rebuilt:
    """RAM as the stream builds it, in anonymous memory that takes only what is not zero."""

    def __init__(self, length: int, page_size: int) -> None:
        fd = os.memfd_create("vmferry-verify", os.MFD_CLOEXEC)
        os.ftruncate(fd, length)
        flat = np.frombuffer(mmap.mmap(fd, length), np.uint8)
        os.close(fd)
        self.ram = flat.reshape(-1, page_size)
        self.page_size = page_size

    def apply(self, run: events.PageRun) -> None:
        """Put a run of pages in its place."""
        numbers = (run.offsets // np.uint64(self.page_size)).astype(np.intp)
        self.ram[numbers] = run.fill if run.data is None else run.data

    def compare(self, path: str, block: str) -> Difference | None:
        """Against a file of the same length. Raises VerifyError."""
        length = self.ram.size
        if os.path.getsize(path) != length:
            size = os.path.getsize(path)
            raise VerifyError(f"{path} has {size} bytes, RAM block {block} has {length}")
        other: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r").reshape(self.ram.shape)
        differ: list[int] = []
        step = 4096
        for start in range(0, len(self.ram), step):
            mask = (self.ram[start : start + step] != other[start : start + step]).any(axis=1)
            differ += (np.flatnonzero(mask) + start).tolist()
        if not differ:
            return None
        first = tuple(number * self.page_size for number in differ[:FIRST_PAGES])
        return Difference(block, len(differ), first)


def verify(stream: BinaryIO, files: dict[str, str]) -> list[Difference]:
    """Raises StreamError when the stream is not valid, VerifyError when a file does not fit."""
    rebuilt: dict[str, Rebuilt] = {}
    page_size = 4096
    for event in read_events(stream):
        if isinstance(event, events.Configuration):
            page_size = event.page_size or page_size
        elif isinstance(event, events.RamBlocks):
            rebuilt = {
                block.name: Rebuilt(block.length, page_size)
                for block in event.blocks
                if block.name in files
            }
        elif isinstance(event, events.PageRun) and event.block.name in rebuilt:
            rebuilt[event.block.name].apply(event)
    missing = set(files) - set(rebuilt)
    if missing:
        raise VerifyError(f"no RAM block {sorted(missing)[0]!r} in the stream")
    found = [rebuilt[block].compare(path, block) for block, path in files.items()]
    return [difference for difference in found if difference is not None]
