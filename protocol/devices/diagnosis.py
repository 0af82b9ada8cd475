"""Explain in one line why the end of a stream is not confirmed.

Only here does the first footer with a section's id count as its end: that is good enough to say in
which section the stream breaks off.
"""

from __future__ import annotations

import json
import re

from ..wire import stream
from ..wire.kept import Kept
from ..wire.marks import SectionType
from .candidates import HEADER_SIZE, Candidate
from .description import MAX_DESCRIPTION
from .following import MismatchError, Section, read_commands, read_section

_STEP = 1 << 20


class EarlyMismatchError(MismatchError):
    """A section before RAM whose length differs from the described one."""


class Worst:
    """The mismatch to report among candidates that do not fit: that of the best one."""

    def __init__(self) -> None:
        self.found: MismatchError | None = None
        self.early: EarlyMismatchError | None = None
        self.last: Candidate | None = None
        """The last candidate of the input."""

    def explained(self, kept: Kept) -> MismatchError | None:
        """Return the mismatch to report, with the length that its section seems to have."""
        error = self.found
        if error is None or error.too_long is None:
            return error
        end = first_footer(kept, error.too_long)
        if end is None or end == error.too_long.end:
            return error
        size = end - error.too_long.payload
        message = f"the section has {size} bytes, its description {error.too_long.size}"
        return MismatchError(message, error.position, error.section)

    def note(self, candidate: Candidate, error: MismatchError) -> None:
        """Note why this candidate does not fit."""
        self.last = self.last or candidate
        if isinstance(error, EarlyMismatchError):
            self.early = self.early or error
        if self.found is None or error.position > self.found.position:
            self.found = error


def undescribed(kept: Kept, *, footers: bool = True) -> MismatchError:
    """Return the fault of kept bytes that no description fits, and that do not end in an EOF."""
    error = _undescribed(kept)
    if not footers:
        error.message += (
            "; or, as its sections have no footers, it ends before what follows it: give --length"
        )
    return error


def _undescribed(kept: Kept) -> MismatchError:
    at = 0
    while True:
        _, at = read_commands(kept, at)
        kind = kept.read(at, 1)
        if kind == bytes([SectionType.EOF]):
            return _behind_eof(kept, at)
        section = read_section(kept, at)
        if section is None:
            return _no_section(kept, at)
        end = first_footer(kept, section)
        if end is None:
            return MismatchError("the stream ends early, in: device", kept.size, section.name)
        at = end + stream.FOOTER_SIZE


def _no_section(kept: Kept, at: int) -> MismatchError:
    kind = kept.read(at, 1)
    if not kind or kind in (bytes([SectionType.FULL]), bytes([SectionType.COMMAND])):
        return MismatchError("the stream ends early, in: part", kept.size)
    return MismatchError(f"byte {kind[0]:#04x} where a section begins", at)


def first_footer(kept: Kept, section: Section) -> int | None:
    """Return the first position where a section may end; None if there is none."""
    footer = re.escape(stream.section_footer(section.section_id))
    for behind in (rb"(?=\x00(?:\x06|\Z)|[\x04\x08]|\Z)", rb"(?=\x00)"):
        pattern = re.compile(footer + behind, re.DOTALL)
        for start in range(section.payload, kept.size, _STEP):
            match = pattern.search(kept.read(start, _STEP + stream.FOOTER_SIZE))
            if match is not None:
                return start + match.start()
    return None


def is_description_begun(kept: Kept, eof: int) -> bool:
    """Return whether a description follows the EOF, maybe cut or damaged, rather than old data."""
    behind = kept.read(eof + 1, HEADER_SIZE)
    size = int.from_bytes(behind[1:5], "big")
    marked = behind[:1] == bytes([SectionType.VMDESCRIPTION])
    return (marked and size <= MAX_DESCRIPTION) or behind[5:] == b"{"


def _behind_eof(kept: Kept, at: int) -> MismatchError:
    """Return the fault after an EOF that nothing confirms."""
    header = kept.read(at, HEADER_SIZE)
    if len(header) < 2 or header[1] != SectionType.VMDESCRIPTION:
        message = "bytes follow an EOF here, and no description confirms that the stream ends"
        return MismatchError(message, at)
    size = int.from_bytes(header[2:], "big")
    if size > MAX_DESCRIPTION:
        return MismatchError(f"a description of {size} bytes", at + 1, "description")
    if len(header) < HEADER_SIZE or at + HEADER_SIZE + size > kept.size:
        return MismatchError("the stream ends early, in: description", kept.size, "description")
    return MismatchError(_not_json(kept.read(at + HEADER_SIZE, size)), at + 1, "description")


def _not_json(text: bytes) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"the description is not JSON: {error}"
    if not isinstance(value, dict):
        return "the description is not a JSON object"
    return "the description has control characters in it, or too many look like it"
