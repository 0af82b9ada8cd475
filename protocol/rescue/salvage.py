"""Read the rest of a damaged stream: the records of RAM after each damage.

Certain data is returned as the events of a sound stream; Damage reports each lost piece, and
Unplaced reports pages of an unknown block. The bytes come from a function that reads anywhere in
the stream, in pieces of a bounded size; each byte is examined a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

from .. import events
from ..reading.ram_reader import RamReader
from ..wire.block import SECTION_NAME as DISKS
from .block_search import Arrived, BlockSearch
from .damage import Damage, Mended, Place, Salvaged, Unplaced
from .failure import Failure
from .mending import Mending
from .resync import Found, Layout, Step, find_records
from .tail import ReadAt
from .walk import UNKNOWN, Sections, Walk

WINDOW = 1 << 20
"""Bytes in which records are searched for at once."""


class Salvage:
    """Reader for the rest of one stream whose list of RAM blocks was read.

    `ram`, `sections`: the state of the reader that failed; `size`: bytes of the stream; `ram_end`:
    where `ram` and all other iterative sections have ended, None if not known; `arrived`: returns
    whether pages arrived already.
    """

    def __init__(
        self,
        read_at: ReadAt,
        size: int,
        *,
        ram: RamReader,
        sections: Sections,
        ram_end: int | None,
        arrived: Arrived,
        footers: bool = True,
    ) -> None:
        assert ram.section is not None
        self._read_at = read_at
        self._end = size if ram_end is None else ram_end
        self._ram_end = ram_end
        section = ram.section
        self._sections: Sections = {**sections, section.section_id: (section, ram)}
        blocks, indexes = [*ram.block_list.blocks.values()], ram.block_list.indexes
        names = {block.name.encode(): block for block in blocks}
        self._layout = Layout(ram.page_size, names, section.section_id, footers)
        self._mending = Mending(read_at, self._layout, blocks, self._end, ram_end)
        unknown = events.RamBlock("", self._layout.limit)
        self._walk = Walk(
            self._mending.read, self._end, ram, self._sections, unknown, footers=footers
        )
        self._block_search = BlockSearch(self._walk, blocks, indexes, ram.page_size, arrived)

    @property
    def behind_ram(self) -> int | None:
        """Return the position of the first section after RAM, if reading got that far."""
        return self._walk.behind_ram

    def read(self, failure: Failure) -> Iterator[Salvaged]:
        """Yield all that can be recovered of RAM, and of sections between its pieces."""
        going: Failure | None = failure
        while going is not None:
            mended = self._mending.mend(going)
            if mended is not None:
                yield Mended(going.offset)
                yield from self._walk.read(going.offset, *mended)
                going = self._following(going.before, going.offset)
                continue
            damage = Damage(
                going.offset,
                max(self._end, going.offset),
                going.message,
                going.before,
                doubtful=going.doubtful,
            )
            found = self._find(going)
            if found is None:
                yield damage
                return
            gap = found.position - going.offset
            damage = replace(
                damage,
                offset=min(going.offset, found.position),
                end=found.position,
                shifted=gap < 0 or not going.stride or bool(gap % going.stride),
            )
            before = yield from self._go_on(found, damage, going)
            # The next search begins after this chain, even if nothing was read from it; otherwise
            # the loop would never end.
            going = self._following(before, found.position + self._layout.min_chain)

    def _following(self, before: Place | None, record: int) -> Failure | None:
        """Return the failure that ended the last walk, which began after the page `before`."""
        failure = self._walk.failure
        if failure is None:
            return None
        if failure.before is None or failure.before.block == UNKNOWN:
            failure = replace(failure, before=before, doubtful=False, stride=0)
        return replace(failure, record=max(failure.record, record))

    def _go_on(
        self, found: Found, damage: Damage, failure: Failure
    ) -> Generator[Salvaged, None, Place | None]:
        """Yield the events from `found` up to the next damage; return the last known page."""
        position, block = found.position, found.block
        if block is None:
            block, damage, ahead = self._block_search.decide(position, damage, failure)
            if block is None:
                yield Unplaced(position, ahead.count)
                if ahead.named is None:
                    yield damage
                    return damage.before
                position, block = ahead.named.offset, self._walk.unknown
        told = False
        for event in self._walk.read(position, block):
            if not told and isinstance(event, (events.PageRun, events.EncodedRun)):
                yield replace(damage, behind=Place(event.block_index, int(event.offsets[0])))
                told = True
            yield event
        if not told:
            yield damage
        return damage.before

    def _find(self, failure: Failure) -> Found | None:
        """Search for records window by window, from the header of the last record that was read on.

        Returns None if there are none.
        """
        start = failure.record + 1
        address = 0 if failure.before is None else failure.before.address + self._layout.page_size
        reach = 2 * self._layout.min_chain
        window = 4 * reach
        if self._holds_disks():
            # A disk may hold another stream, whose records look like those of this one.
            return None
        while start < self._end:
            view = memoryview(self._read_at(start, min(window, self._end - start)))
            if not view:
                return None
            last = start + len(view) >= self._end
            ram_end = len(view) if last and self._ram_end is not None else None
            step = None
            if failure.stride and failure.before is not None:
                step = Step(failure.offset - start, failure.stride, address)
            found = find_records(view, self._layout, step, ram_end)
            if found is not None:
                return Found(start + found.position, found.block)
            if last:
                return None
            start += len(view) - reach
            window = max(window, min(2 * window, WINDOW))
        return None

    def _holds_disks(self) -> bool:
        return any(section.name == DISKS for section, _ in self._sections.values())
