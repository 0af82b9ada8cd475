"""Correct single wrong bits in the headers of records and sections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .. import events
from ..wire import stream
from ..wire.marks import RamFlag, SectionType
from ..wire.ram import RECORD_HEADER_SIZE
from ..wire.stream import FOOTER_SIZE
from .failure import Failure
from .resync import Layout, leads_on
from .tail import ReadAt
from .walk import First

_MAX_MENDED = 256
"""Limit for the places of one stream where a bit is corrected."""


class Mending:
    """The corrections of one stream.

    `read_at`: reads the stream as it is; `blocks`: the RAM blocks, by index; `end`: where `ram` has
    to end, or the end of the stream if `ram_end` is None.
    """

    def __init__(
        self,
        read_at: ReadAt,
        layout: Layout,
        blocks: Sequence[events.RamBlock],
        end: int,
        ram_end: int | None,
    ) -> None:
        self._read_at = read_at
        self._layout = layout
        self._blocks = blocks
        self._end = end
        self._ram_end = ram_end
        self._patches: dict[int, bytes] = {}

    def mend(self, failure: Failure) -> tuple[events.RamBlock, First] | None:
        """Correct one bit at the failure; return the block and the part to continue with.

        Returns None unless exactly one bit makes the records after it follow.
        """
        if failure.before is None or len(self._patches) == _MAX_MENDED:
            return None
        place, block = failure.offset, self._blocks[failure.before.block]
        found = [
            (patch, first)
            for patch, first in self._patches_for(failure)
            if self._confirms(place, patch, first)
        ]
        if len(found) != 1:
            return None
        patch, first = found[0]
        self._patches[place] = patch
        return block, first

    def _patches_for(self, failure: Failure) -> Iterator[tuple[bytes, First]]:
        """Yield corrections of one bit at the failure, and the part that each begins."""
        assert failure.before is not None
        raw = self._read_at(failure.offset, 2 * FOOTER_SIZE)
        section_id = self._layout.section_id
        footer, part = stream.section_footer(section_id), stream.section_part(section_id)
        for head in (part, bytes([SectionType.END]) + part[1:]):
            for whole, first in ((footer + head, First.FOOTER), (head, First.PART)):
                if _differ_by_one_bit(raw[: len(whole)], whole):
                    yield whole, first
        value = int.from_bytes(raw[:RECORD_HEADER_SIZE], "big")
        block = self._blocks[failure.before.block]
        for bit in range(8 * RECORD_HEADER_SIZE):
            turned = value ^ 1 << bit
            address = turned & -self._layout.page_size
            ascends = failure.before.address < address < block.length
            if ascends or turned == RamFlag.EOS:
                yield turned.to_bytes(RECORD_HEADER_SIZE, "big"), First.RECORD

    def _confirms(self, place: int, patch: bytes, first: First) -> bool:
        """Return whether records follow if `patch` is at `place`."""
        skip = 0 if first == First.RECORD else len(patch)
        size = 3 * self._layout.min_chain
        data = patch + self._read_at(place + len(patch), min(size, self._end - place))
        ends = self._ram_end is not None and place + len(data) >= self._end
        return leads_on(memoryview(data)[skip:], self._layout, len(data) - skip if ends else None)

    def read(self, place: int, size: int) -> bytes:
        """Return the bytes at `place`, with corrections applied."""
        data = self._read_at(place, size)
        for at, patch in self._patches.items():
            if place <= at and at + len(patch) <= place + len(data):
                data = data[: at - place] + patch + data[at - place + len(patch) :]
        return data


def _differ_by_one_bit(one: bytes, other: bytes) -> bool:
    difference = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return len(one) == len(other) and difference.bit_count() == 1
