"""Find what may be the description of a stream, from the end of the input backwards.

A guest can write the bytes of a description into its memory and devices. So nothing is trusted
here: for each candidate, `ending` checks whether the sections of the stream are exactly as it says.

JSON has no control characters but tab and newlines. A candidate ends before the next of them, and
the next candidate begins with one: however many there are, each byte is read only a few times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .. import events
from ..errors import StreamError
from ..wire.kept import Kept
from ..wire.marks import SectionType
from .description import CONTROL, MAX_DESCRIPTION, Described, DescriptionError, described

MAX_CANDIDATES = 50_000
"""Limit for the candidates examined in one input; a real input has one, or a few."""

HEADER_SIZE = 6
"""Bytes of a candidate before its text: EOF, VMDESCRIPTION, be32 length."""

_STEP = 1 << 20
_FIRST_STEP = 1 << 10
_BEGIN = re.compile(rb"\x00\x06(?=....\{)", re.DOTALL)
_LAST_CONTROL = re.compile(rb"(?s:.*)" + CONTROL.pattern)
_MARK = bytes([SectionType.VMDESCRIPTION])


@dataclass(frozen=True)
class Candidate:
    """A possible description; the EOF before it is at `position` of the kept bytes.

    `devices`: those that it lists; `error`: the reason why its contents are invalid, or None.
    """

    position: int
    text: bytes
    json: dict[str, Any]
    devices: list[Described]
    error: str | None = None

    @property
    def end(self) -> int:
        """Return the position in the kept bytes after the candidate."""
        return self.position + HEADER_SIZE + len(self.text)


def candidates(kept: Kept, end: int | None = None) -> Iterator[Candidate]:
    """Yield possible descriptions, the last one first.

    `end`: only those that begin before this position. At most MAX_CANDIDATES positions are
    examined.
    """
    left = MAX_CANDIDATES
    for position in _beginnings(kept, kept.size if end is None else end):
        left -= 1
        if left < 0:
            return
        candidate = read_candidate(kept, position)
        if candidate is not None:
            yield candidate


def _beginnings(kept: Kept, end: int) -> Iterator[int]:
    while end > 0:
        start = max(0, end - _STEP)
        data = kept.read(start, end - start + HEADER_SIZE)
        # Most bytes after a stream are zeros, which this test skips at the speed of memory.
        if _MARK in data:
            for match in reversed([*_BEGIN.finditer(data)]):
                yield start + match.start()
        end = start


def read_candidate(kept: Kept, position: int) -> Candidate | None:
    """Return the candidate whose EOF is at `position`; None if no JSON object follows it."""
    header = kept.read(position, HEADER_SIZE)
    size = int.from_bytes(header[2:], "big")
    start = position + HEADER_SIZE
    if len(header) < HEADER_SIZE or not 2 <= size <= min(MAX_DESCRIPTION, kept.size - start):
        return None
    if kept.read(start + size - 1, 1) != b"}" or not _is_text(kept, start, size):
        return None
    return parse_candidate(position, kept.read(start, size))


def _is_text(kept: Kept, start: int, size: int) -> bool:
    """Return whether none of these bytes is a control character; fast if an early one is."""
    at, step = 0, _FIRST_STEP
    while at < size:
        if CONTROL.search(kept.read(start + at, min(step, size - at))):
            return False
        at, step = at + step, min(2 * step, _STEP)
    return True


def parse_candidate(position: int, text: bytes) -> Candidate | None:
    """Return the candidate with this text; None if the text is not a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    try:
        return Candidate(position, text, value, described(value))
    except DescriptionError as error:
        return Candidate(position, text, value, [], str(error))


def read_description(text: bytes, offset: int, page_size: int) -> events.Description:
    """Return the description at `offset` in the stream.

    Raises StreamError if it is not a JSON object, or has another page size than `page_size`.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"the description is not JSON: {error}"
        raise StreamError(message, offset=offset) from None
    if not isinstance(value, dict):
        raise StreamError("the description is not a JSON object", offset=offset)
    size = value.get("page_size", page_size)
    if size != page_size:
        raise StreamError(wrong_page_size(size, page_size), offset=offset)
    return events.Description(offset, text, value)


def wrong_page_size(described: object, read: int) -> str:
    """Return the message for a description whose page size differs from the one read, in bytes."""
    told = f"pages have {described} bytes by the description, were read as {read}"
    return f"{told} (give --page-size)"


class LastCandidate:
    """A search for the candidate that ends where the kept bytes end, while more arrive.

    However often it is called, each byte is examined once, except for the text of a candidate.
    """

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._seen = 0
        self._last_control = -1

    def find(self) -> Candidate | None:
        """Return the candidate that nothing follows; None if there is none."""
        size = self._kept.size
        if size == 0 or self._kept.read(size - 1, 1) != b"}":
            return None
        self._look(size)
        # The last bytes of the length may be control characters or not; its first byte always is.
        for start in range(self._last_control + 1, min(self._last_control + 4, size) + 1):
            position = start - HEADER_SIZE
            header = _header(size - start)
            if position >= 0 and self._kept.read(position, HEADER_SIZE + 1) == header + b"{":
                return read_candidate(self._kept, position)
        return None

    def _look(self, size: int) -> None:
        """Find the last control character among the bytes that have arrived since the last call."""
        end = size
        while end > self._seen:
            start = max(self._seen, end - _STEP)
            data = self._kept.read(start, end - start)
            found = _LAST_CONTROL.match(data)
            if found:
                self._last_control = start + found.end() - 1
                break
            end = start
        self._seen = size


def _header(size: int) -> bytes:
    return bytes([SectionType.EOF, SectionType.VMDESCRIPTION]) + size.to_bytes(4, "big")
