"""Tracks the pages of a damaged stream, to determine which ones were lost.

A page is sent at most once in a round, in the order of blocks and addresses. So the pages in a
damaged piece lie between the pages before and after it. Any of them that never arrives is lost. Any
that arrived earlier may be stale: a newer version of it may have been lost.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...protocol import events
from ...protocol.rescue.damage import Damage, Mended, Place, Salvaged, Unplaced
from ..rebuild.arrivals import Arrivals
from ..rebuild.block_file import Run
from ..sources.stream_events import Found
from .page_states import PageStates, State
from .survival import BlockSurvival, Piece, Survival

_MAX_OF_ONE_ROUND = 64 << 10
"""The most bytes of a lost piece that is assumed to contain only pages of one round."""
_NUMBER_BITS = 48
"""The number of bits in a page number."""
_MAX_ALONE = 256
"""The most pages out of order that are examined in one run."""


class Survey:
    """The record of a damaged stream's events, which yields the fate of each page at the end."""

    def __init__(self) -> None:
        self.result = Survival()
        self._listed: events.RamBlocks | None = None
        self._states: list[PageStates] = []
        self._guessing = False
        self._behind: Damage | None = None
        self._order = (-1, np.zeros(0, np.intp))
        """The index of the block that pages last arrived for, and the numbers of the last two
        pages.
        """

    def take(self, event: Salvaged | Found) -> None:
        """Record the next event."""
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            self._take_pages(event)
        elif isinstance(event, events.RamBlocks):
            self._list(event)
        elif isinstance(event, Damage):
            self._take_damage(event)
        elif isinstance(event, Unplaced):
            self.result.unplaced += event.count
        elif isinstance(event, Mended):
            self.result.mended.append(event.offset)
        elif isinstance(event, events.DeviceSection):
            self.result.kept.append((event.name, event.instance_id))

    def spoil(self, run: Run) -> None:
        """Mark pages as damaged that arrived with an invalid encoding."""
        self._states[run.block_index].put(self._numbers(run), State.DAMAGED)

    def miss(self, index: int, pages: npt.NDArray[np.intp] | slice) -> None:
        """Mark pages that are missing in a mapped-ram file."""
        self._states[index].miss(pages)

    def arrived(self, index: int, numbers: npt.NDArray[np.intp]) -> bool:
        """Return whether any of these pages (n,) of a block arrived."""
        return self._states[index].arrived(numbers)

    def doubt_block(self, index: int) -> None:
        """Mark all pages of a mapped-ram file's block as guessed, because they may be shifted by
        damage.
        """
        states = self._states[index]
        states.doubt(0, states.count, State.GUESSED)

    def finish(self, names: set[str], arrivals: Arrivals) -> Survival:
        """Return the result for the blocks with these `names`.

        Memory that `arrivals` reports as unplugged is not lost.
        """
        if self._behind is not None and self.result.ram_ends:
            self._mark(self._behind.before, None)
        blocks = () if self._listed is None else self._listed.blocks
        for block, states in zip(blocks, self._states, strict=True):
            if block.name in names:
                size = self._page_size
                lost = states.lost(size, arrivals.plugged(block))
                stale, guessed = (states.having(s, size) for s in (State.STALE, State.GUESSED))
                found = BlockSurvival(block.name, states.count, lost, stale, guessed)
                self.result.blocks.append(found)
        return self.result

    @property
    def _page_size(self) -> int:
        assert self._listed is not None
        return self._listed.page_size

    def _list(self, listed: events.RamBlocks) -> None:
        self._listed = listed
        for block in listed.blocks:
            mapped = block.mapped is not None and block.mapped.present
            self._states.append(PageStates(block.length // listed.page_size, zero=mapped))

    def _numbers(self, run: Run) -> npt.NDArray[np.intp]:
        return (run.offsets // np.uint64(self._page_size)).astype(np.intp)

    def _take_pages(self, run: Run) -> None:
        states, numbers = self._states[run.block_index], self._numbers(run)
        self._guessing = self._guessing and run.continued
        new = State.GUESSED if self._guessing else State.SOUND
        if isinstance(run, events.XbzrleRun):
            states.change(numbers, new)
        else:
            states.put(numbers, new)
        if self._guessing:
            # If the guess is wrong, these pages belong to another block, which then lacks them.
            for other in self._states:
                if other is not states:
                    other.doubt_some(numbers)
        if not isinstance(run, events.MappedRun):
            self._look_at_order(run.block_index, numbers)

    def _look_at_order(self, index: int, numbers: npt.NDArray[np.intp]) -> None:
        """Mark a page as damaged if it alone is out of order, and fits with one bit of its number
        flipped.

        Such a page is likely a different one, whose address was damaged.
        """
        block, before = self._order
        if block == index:
            numbers = np.concatenate((before, numbers))
        self._order = index, numbers[-2:]
        first, middle, last = numbers[:-2], numbers[1:-1], numbers[2:]
        alone = (first < last) & ~((first < middle) & (middle < last))
        for at in np.flatnonzero(alone)[:_MAX_ALONE].tolist():
            here, low, high = int(middle[at]), int(first[at]), int(last[at])
            if any(low < here ^ 1 << bit < high for bit in range(_NUMBER_BITS)):
                self._states[index].put(middle[at : at + 1], State.DAMAGED)
                self._mark_between((index, low + 1), (index, high))

    def _take_damage(self, damage: Damage) -> None:
        self.result.pieces.append(Piece(damage.offset, damage.end, damage.message))
        self._guessing = damage.guessed
        self._order = -1, np.zeros(0, np.intp)
        if damage.before is not None and damage.doubtful:
            number = np.array([damage.before.address // self._page_size])
            self._states[damage.before.block].put(number, State.DAMAGED)
        self._behind = damage if damage.in_ram and damage.behind is None else None
        if damage.behind is not None:
            page = np.array([damage.behind.address // self._page_size])
            if self._states[damage.behind.block].arrived(page):
                # This is not the first round, so the lost bytes may contain whole rounds.
                few = not damage.shifted and damage.end - damage.offset <= _MAX_OF_ONE_ROUND
                self.result.rounds_lost |= not few
            self._mark(damage.before, damage.behind)

    def _mark(self, before: Place | None, behind: Place | None) -> None:
        """Mark arrived pages between two places as stale.

        If the second place precedes the first one, a new round began between them: the range from
        the first place to the end, and that from the beginning to the second place, are marked.
        """
        if self._listed is None:
            return
        size = self._listed.page_size
        start = (0, 0) if before is None else (before.block, before.address // size + 1)
        end = (len(self._states), 0)
        if behind is not None:
            end = (behind.block, behind.address // size)
        if start <= end:
            self._mark_between(start, end)
        else:
            self._mark_between(start, (len(self._states), 0))
            self._mark_between((0, 0), end)

    def _mark_between(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        for index in range(start[0], min(end[0] + 1, len(self._states))):
            states = self._states[index]
            first = start[1] if index == start[0] else 0
            last = end[1] if index == end[0] else states.count
            states.doubt(first, last, State.STALE)
