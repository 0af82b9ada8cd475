"""Tells device sections apart that no description lists, where there is one way to do so.

A section may end at each footer with its id, if something follows that may. The true ends are
always among them: so if the bytes can be taken apart in one way only, from the first section to the
end of the stream, that is how they are. If there are several ways, a device holds what looks like
its end, and nothing tells which is right.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

from . import stream
from .following import Part, Section, read_commands, read_section
from .kept import Kept

_FOOTER_SIZE: int = stream.SectionFooter.sizeof()
_FOOTERS = re.compile(rb"\x7e(?=....[\x00\x04\x08])", re.DOTALL)
_STEP = 1 << 20
_MAX_FOOTERS = 1 << 16
"""Places that look like the end of a section. Where there are more, nothing is told apart."""


class Apart(NamedTuple):
    """Device sections and commands; the EOF behind them is at `eof` of the kept bytes.

    `parts`: None where there are several ways to tell them apart.
    """

    parts: list[Part] | None
    eof: int


def take_apart(kept: Kept, ids: frozenset[int]) -> Apart | None:
    """Return the parts of kept bytes that end in an EOF and maybe zeros; None if there is no way.

    `ids`: of the sections that came before, none of which may come again.
    """
    zeros, footers = _zeros_from(kept), _find_footers(kept)
    if footers is None:
        # The last section's footer may end in a zero byte.
        return Apart(None, zeros) if zeros < kept.size else None
    ways = _Ways(kept, zeros, footers)
    if ways.count == 0:
        return None
    return ways.only(ids) or Apart(None, max([zeros, *(f + _FOOTER_SIZE for f in footers)]))


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
    """Return the positions of all that look like footers; None where there are too many."""
    found: list[int] = []
    for at in range(0, kept.size, _STEP):
        data = kept.read(at, _STEP + _FOOTER_SIZE)
        found += [at + match.start() for match in _FOOTERS.finditer(data)]
        if len(found) > _MAX_FOOTERS:
            return None
    return found


class _Ways:
    """In how many ways the bytes from a place on can be taken apart: 0, 1 or more.

    The places are looked at from the last to the first, so that of each section that may begin
    there is known already how all goes on behind each of its ends.
    """

    def __init__(self, kept: Kept, zeros: int, footers: list[int]) -> None:
        self._kept = kept
        self._zeros = zeros
        self._ends: dict[int, list[int]] = defaultdict(list)
        """By section id: footers from which all can go on: their positions, negated, in order."""
        self._sums: dict[int, list[int]] = defaultdict(lambda: [0])
        """By section id: the ways behind so many of these, together."""
        for footer in reversed(footers):
            count = self._count(footer + _FOOTER_SIZE)
            if count:
                section_id = int.from_bytes(kept.read(footer + 1, 4), "big")
                self._ends[section_id].append(-footer)
                sums = self._sums[section_id]
                sums.append(min(2, sums[-1] + count))

    @property
    def count(self) -> int:
        """Of all bytes; 2 for more than one."""
        return self._count(0)

    def only(self, ids: frozenset[int]) -> Apart | None:
        """Return the one way from the first byte on; None if there is none, or another one."""
        if self.count != 1:
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
            (end,) = self._behind(section)
            parts.append(replace(section, size=end - section.payload))
            at = end + _FOOTER_SIZE

    def _is_end(self, at: int) -> bool:
        """Whether an EOF may be there: nothing but zeros follows."""
        return self._zeros <= at < self._kept.size

    def _behind(self, section: Section) -> list[int]:
        """The places where the section may end, the last first."""
        ends = self._ends[section.section_id]
        return [-end for end in ends[: bisect_right(ends, -section.payload)]]

    def _count(self, at: int) -> int:
        _, at = read_commands(self._kept, at)
        if self._is_end(at):
            return 1
        section = read_section(self._kept, at)
        if section is None:
            return 0
        ends = self._ends[section.section_id]
        return self._sums[section.section_id][bisect_right(ends, -section.payload)]
