"""Separate device sections that no description lists, if there is only one way to do so.

A section may end at each footer with its id that is followed by something valid. The true ends are
always among them: so if there is only one way to divide the bytes, from the first section to the
end of the stream, it is the right one. If there are several ways, a device contains what looks like
its end, and nothing shows which is right: then all sections stay together, up to the last place
where the stream may end, so that no data of the guest is left out.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

from ..wire import stream
from ..wire.kept import Kept
from ..wire.marks import SectionType
from .following import Part, read_commands, read_section

_FOOTERS = re.compile(rb"\x7e(?=\x00...[\x00\x04\x08])", re.DOTALL)
"""Footers of sections below MAX_SECTION_ID that are followed by something valid."""
_STEP = 1 << 20
_EOF = bytes([SectionType.EOF])
_MAX_FOOTERS = 1 << 16
"""Limit for the places that look like the end of a section; with more, nothing is separated."""


class Apart(NamedTuple):
    """Device sections and commands, with the EOF after them at `eof` of the kept bytes.

    `parts`: None if there are several ways to separate them; `eof` is then its last possible place.
    """

    parts: list[Part] | None
    eof: int


def take_apart(kept: Kept, ids: frozenset[int], *, anything_behind: bool = False) -> Apart | None:
    """Return the parts of kept bytes up to the EOF; None if they cannot be divided.

    `ids`: section ids that occurred before and may not occur again. `anything_behind`: other bytes
    than zeros may follow the EOF.
    """
    zeros, footers = _zeros_from(kept), _find_footers(kept)
    if footers is None:
        if anything_behind:
            return last_zero(kept)
        # The last section's footer may end in a zero byte.
        return Apart(None, zeros) if zeros < kept.size else None
    ways = _Ways(kept, 0 if anything_behind else zeros, footers)
    count, eof = ways.all()
    if count == 0:
        return None
    return ways.only(ids) or Apart(None, eof)


def last_zero(kept: Kept) -> Apart | None:
    """Return everything up to the last byte that may be the EOF, as one; None if there is none."""
    end = kept.size
    while end > 0:
        start = max(0, end - _STEP)
        at = kept.read(start, end - start).rfind(_EOF)
        if at >= 0:
            return Apart(None, start + at)
        end = start
    return None


def _zeros_from(kept: Kept) -> int:
    """Return the position of the first of the zeros at the end."""
    end = kept.size
    while end > 0:
        start = max(0, end - _STEP)
        data = kept.read(start, end - start).rstrip(b"\0")
        if data:
            return start + len(data)
        end = start
    return 0


def _find_footers(kept: Kept) -> list[int] | None:
    """Return the positions of all that look like footers; None if there are too many."""
    found: list[int] = []
    for at in range(0, kept.size, _STEP):
        data = kept.read(at, _STEP + stream.FOOTER_SIZE)
        found += [at + match.start() for match in _FOOTERS.finditer(data)]
        if len(found) > _MAX_FOOTERS:
            return None
    return found


class _Behind:
    """The footers with one section id from which the rest can be divided, the last one first."""

    def __init__(self) -> None:
        self.footers: list[int] = []
        """Their positions, negated, so that they are in ascending order."""
        self._counts = [0]
        """Ways to continue after any of so many footers, by their number; 2 for more than one."""
        self._eofs = [-1]
        """Last possible place of the EOF after any of so many footers, by their number."""

    def add(self, footer: int, count: int, eof: int) -> None:
        """Add a footer that is before all others."""
        self.footers.append(-footer)
        self._counts.append(min(2, self._counts[-1] + count))
        self._eofs.append(max(self._eofs[-1], eof))

    def since(self, payload: int) -> tuple[int, int]:
        """Return in how many ways a payload at this position can end, and the last possible EOF."""
        many = bisect_right(self.footers, -payload)
        return self._counts[many], self._eofs[many]


class _Ways:
    """The number of ways to divide the bytes from a place on: 0, 1, or 2 for more.

    The places are examined from the last to the first, so that the ways to continue after each end
    of a section are known before the section is. `ends_from`: the stream does not end before this
    place.
    """

    def __init__(self, kept: Kept, ends_from: int, footers: list[int]) -> None:
        self._kept = kept
        self._ends_from = ends_from
        self._behind: dict[int, _Behind] = defaultdict(_Behind)
        """The usable footers, by section id."""
        for footer in reversed(footers):
            count, eof = self._from(footer + stream.FOOTER_SIZE)
            if count:
                section_id = int.from_bytes(kept.read(footer + 1, 4), "big")
                self._behind[section_id].add(footer, count, eof)

    def all(self) -> tuple[int, int]:
        """Return the number of ways to divide all bytes, 2 for more than one, and the last EOF."""
        return self._from(0)

    def only(self, ids: frozenset[int]) -> Apart | None:
        """Return the only way to divide the bytes from the first one on.

        Returns None if there is none or another one, or if a section id would occur twice.
        """
        if self.all()[0] != 1:
            return None
        parts: list[Part] = []
        at, taken = 0, set(ids)
        while True:
            commands, at = read_commands(self._kept, at)
            parts += commands
            if self._is_end(at):
                return Apart(parts, at)
            section = read_section(self._kept, at)
            assert section is not None
            if section.section_id in taken:
                return None
            taken.add(section.section_id)
            end = -self._behind[section.section_id].footers[0]
            parts.append(replace(section, size=end - section.payload))
            at = end + stream.FOOTER_SIZE

    def _is_end(self, at: int) -> bool:
        return at >= self._ends_from and self._kept.read(at, 1) == _EOF

    def _from(self, at: int) -> tuple[int, int]:
        _, at = read_commands(self._kept, at)
        if self._is_end(at):
            return 1, at
        section = read_section(self._kept, at)
        if section is None:
            return 0, -1
        return self._behind[section.section_id].since(section.payload)
