"""Parse and write QMP on the wire: JSON values one after another. This module does no I/O.

No separator is needed between two values. After a broken value, parsing continues where that value
must have ended: at its last bracket, at the end of the line within a string, or at the byte 0xFF,
which a client may send to be sure. Source: QEMU's documentation, docs/interop/qmp-spec.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from .errors import QmpError

MAX_MESSAGE = 1 << 20
"""Largest size of one message in bytes; no command is nearly as large."""
MAX_DEPTH = 128
"""Largest depth of nested brackets."""

_TOO_LONG = "JSON token size limit exceeded"
_RESET = 0xFF
_SPACE = b" \t\r\n"
_OUTSIDE = re.compile(rb'[{}\[\]"\xff]')
_IN_STRING = re.compile(rb'\\[^\n\xff]|["\n\xff]')
_WORD_ENDS = re.compile(rb'[{}\[\]"\xff \t\r\n]')


def encode(message: dict[str, Any]) -> bytes:
    """Return the message as QEMU writes it, one per line."""
    return json.dumps(message).encode() + b"\r\n"


def decode(text: bytes) -> Any:
    """Return the JSON value. Raises QmpError."""
    try:
        return json.loads(
            text.decode(),
            object_pairs_hook=_object,
            parse_float=_number,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise QmpError(f"JSON parse error, {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"number {digits[:40]} is too large")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"invalid keyword '{name}'")


class MessageReader:
    """A parser that takes bytes and returns whole values; it keeps at most `MAX_MESSAGE` bytes."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._searched = 0
        self._depth = 0
        self._in_string = False
        self._refused = False
        """True while the rest of a value is ignored, because it was already answered."""

    def feed(self, data: bytes) -> list[Any]:
        """Return the values that are complete now, with a QmpError in place of each invalid one."""
        self._text += data
        found: list[Any] = []
        while self._step(found):
            pass
        if len(self._text) > MAX_MESSAGE:
            self._refuse(found, _TOO_LONG)
            if not self._depth and not self._in_string:
                self._searched = len(self._text)
                self._end()
        if self._refused:
            del self._text[: self._searched]
            self._searched = 0
        return found

    def _step(self, found: list[Any]) -> bool:
        """Process the next significant byte; return False if it has not arrived yet."""
        if not self._depth and not self._in_string and not self._refused:
            return self._begin(found)
        pattern = _IN_STRING if self._in_string else _OUTSIDE
        match = pattern.search(self._text, self._searched)
        if match is None:
            # A backslash at the end decides how the next byte is read.
            waits = len(self._text) > self._searched and self._text.endswith(b"\\")
            self._searched = len(self._text) - (self._in_string and waits)
            return False
        self._searched = match.end()
        token = match[0]
        if token[0] == _RESET or token == b"\n":
            stray = bytes(self._text[: self._searched][:60])
            self._refuse(found, f"JSON parse error, stray {stray!r}")
            self._end()
        elif token == b'"':
            self._in_string = not self._in_string
            if not self._in_string and not self._depth:
                self._complete(found)
        elif token in (b"{", b"["):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                self._refuse(found, "JSON nesting depth limit exceeded")
        elif token in (b"}", b"]"):
            self._depth -= 1
            if self._depth <= 0:
                self._complete(found)
        return True

    def _begin(self, found: list[Any]) -> bool:
        """Process the first byte of a value, or a whole word; return False if it is incomplete."""
        self._text = self._text.lstrip(_SPACE + b"\xff")
        self._searched = 0
        if not self._text:
            return False
        first = bytes(self._text[:1])
        if first in (b"{", b"["):
            self._depth, self._searched = 1, 1
        elif first == b'"':
            self._in_string, self._searched = True, 1
        else:
            end = 1 if first in (b"}", b"]") else None
            if end is None:
                match = _WORD_ENDS.search(self._text)
                if match is None:
                    return False
                end = match.start()
            self._searched = end
            self._complete(found)
        return True

    def _complete(self, found: list[Any]) -> None:
        if self._searched > MAX_MESSAGE:
            self._refuse(found, _TOO_LONG)
        if not self._refused:
            try:
                found.append(decode(bytes(self._text[: self._searched])))
            except QmpError as error:
                found.append(error)
        self._end()

    def _refuse(self, found: list[Any], reason: str) -> None:
        if not self._refused:
            found.append(QmpError(reason))
            self._refused = True

    def _end(self) -> None:
        del self._text[: self._searched]
        self._searched, self._depth = 0, 0
        self._in_string = self._refused = False
