"""Is a stream whole, and does it rebuild exactly this RAM."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..protocol.errors import StreamError
from .compare import differing
from .dump import read_events
from .rebuild import Image, RebuildError, rebuild

FIRST_PAGES = 8
"""How many differing pages are named."""


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


def compare_file(image: Image, block: str, file: BinaryIO) -> Comparison:
    """With a file of the same length. Raises RebuildError."""
    size = file.seek(0, os.SEEK_END)
    if size != image.length:
        raise RebuildError(f"{file.name} has {size} bytes, RAM block {block} has {image.length}")
    count = 0
    first: list[int] = []
    for start, mask in differing(image.fd, file.fileno(), image.length, image.page_size):
        count += int(mask.sum())
        missing = FIRST_PAGES - len(first)
        first += (start + mask.nonzero()[0][:missing] * image.page_size).tolist()
    return Comparison(block, file.name, count, tuple(first))


def verify(stream: BinaryIO, files: dict[str, str], page_size: int = 4096) -> list[Comparison]:
    """Read all of it, and compare blocks with `files`, by name; `page_size` as in `read_events`.

    Raises StreamError when the stream is not valid, RebuildError when a file does not fit, OSError
    when one cannot be read.
    """
    with ExitStack() as stack:
        # A missing file is told before a long stream is read.
        opened = {block: stack.enter_context(open(path, "rb")) for block, path in files.items()}
        guest = rebuild(read_events(stream, page_size), stack, opened)
        return [compare_file(guest.images[block], block, file) for block, file in opened.items()]
