"""The messages of a handover, recognised in the bytes that pass between two ends.

A mark is a place in one direction of the connection: the end of the stream, a PING that the source
sends behind it, or an answer of the destination.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

SHUT, PONG = 1, 2
PINGS = {0x766D6601: "hello", 0x766D6603: "confirm", 0x766D6604: "abort"}
"""Meaning of a vmferry source's PINGs, by their value."""
PONGS = {0x766D6601: "hello answered", 0x766D6602: "confirms", 0x766D6603: "confirmed"}
"""Meaning of a destination's PONGs, by their value."""

_HEADER = struct.Struct(">HH")
_KEEP = 64
"""Bytes that are looked at again with those that follow; no pattern is longer."""
_PATTERN = re.compile(
    # The COMMAND PING with four bytes of data, or the footer of the last device, EOF and the
    # beginning of the description.
    rb"\x08\x00\x02\x00\x04(?P<ping>vmf[\x01\x03\x04])"
    rb'|\x7e.{4}\x00(?P<description>\x06(?P<length>.{4})\{"(?:page_size|configuration|devices)")',
    re.DOTALL,
)


@dataclass(frozen=True)
class Mark:
    """Bytes `start` to `end` of one direction of the connection are `name`."""

    name: str
    start: int
    end: int


class StreamMarks:
    """Finds the marks of the stream: `end`, and the PINGs of PINGS.

    A compressed stream has none of them.
    """

    def __init__(self) -> None:
        self._kept = b""
        self._offset = 0
        self._seen = 0

    def feed(self, data: bytes) -> list[Mark]:
        """Return the marks that begin, or become complete, in these bytes."""
        text = self._kept + data
        found = []
        for match in _PATTERN.finditer(text):
            if self._offset + match.start() >= self._seen:
                found.append(self._mark(match))
                self._seen = self._offset + match.end()
        self._kept = text[-_KEEP:]
        self._offset += len(text) - len(self._kept)
        return found

    def _mark(self, match: re.Match[bytes]) -> Mark:
        if match["ping"]:
            name = PINGS[int.from_bytes(match["ping"], "big")]
            return Mark(name, self._offset + match.start(), self._offset + match.end())
        start = self._offset + match.start("description")
        length = int.from_bytes(match["length"], "big")
        # The byte before the description is EOF.
        return Mark("end", start - 1, start + 5 + length)


class AnswerMarks:
    """Finds the marks of the return path: `shut`, `refused` (SHUT with an error), and PONGS."""

    def __init__(self) -> None:
        self._rest = b""
        self._offset = 0

    def feed(self, data: bytes) -> list[Mark]:
        """Return the messages that become complete in these bytes."""
        self._rest += data
        found = []
        while len(self._rest) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._rest)
            end = _HEADER.size + length
            if len(self._rest) < end:
                break
            value = int.from_bytes(self._rest[_HEADER.size : end], "big")
            name = _answer(kind, value)
            found.append(Mark(name, self._offset, self._offset + end))
            self._rest = self._rest[end:]
            self._offset += end
        return found


def _answer(kind: int, value: int) -> str:
    if kind == SHUT:
        return "refused" if value else "shut"
    if kind == PONG:
        return PONGS.get(value, "pong")
    return f"message {kind}"
