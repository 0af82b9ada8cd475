"""What of a damaged stream survived: which pages and devices were kept, lost, or may be stale.

A page is sent at most once in a round, in the order of blocks and of addresses. So what a damaged
piece held lies between the pages before and behind it. A page of these that never arrives is lost.
One that had arrived before may be stale: a newer version of it may have been lost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ..guest.sizes import format_size
from ..protocol import events
from ..protocol.salvage import Damage, Mended, Place, Salvaged, Unplaced
from ..protocol.tail import as_text
from .arrivals import Arrivals
from .failure import CommandError
from .stream_events import Found

_MAX_OF_ONE_ROUND = 64 << 10
"""Bytes of a stream that are taken to hold no more than pages of one round."""
_NUMBER_BITS = 48
"""Bits of the number of a page."""
_MAX_ALONE = 256
"""Pages out of order in one run, which are looked at."""
_SHOWN = 8
"""Ranges of pages that a line names."""


class State(IntEnum):
    """What is known of a page."""

    NEVER = 0
    SOUND = 1
    DAMAGED = 2
    """It arrived, but damage may have touched it, or what it was changed from."""
    STALE = 3
    """It is sound, but a newer version may have been lost."""
    GUESSED = 4
    """It is likely that it belongs here, but not certain."""


@dataclass(frozen=True)
class Pages:
    """Pages of one block, and of one fate: ranges of bytes in the block, [start, end)."""

    count: int
    ranges: list[tuple[int, int]]

    def describe(self) -> str:
        """Return the number of pages, and where the first ranges are."""
        shown = ", ".join(f"{start:#x}-{end:#x}" for start, end in self.ranges[:_SHOWN])
        more = ", ..." if len(self.ranges) > _SHOWN else ""
        return f"{self.count} {'page' if self.count == 1 else 'pages'}, at {shown}{more}"

    def as_json(self) -> dict[str, Any]:
        """Keys: pages, ranges (start and end in the block, in bytes)."""
        return {"pages": self.count, "ranges": [list(one) for one in self.ranges]}


@dataclass(frozen=True)
class BlockSurvival:
    """What became of one RAM block of `pages` pages; without those of which nothing is wrong.

    `lost`: never arrived, or are damaged; `stale`: may have been newer; `guessed`: may belong
    elsewhere.
    """

    block: str
    pages: int
    lost: Pages
    stale: Pages
    guessed: Pages

    def describe(self) -> list[str]:
        """Return a line for each fate that some pages have."""
        fates = {
            "lost": self.lost,
            "may be stale (sent again in what is lost)": self.stale,
            "may belong elsewhere": self.guessed,
        }
        return [
            f"{self.block}: {fate}: {pages.describe()}"
            for fate, pages in fates.items()
            if pages.count
        ]

    def as_json(self) -> dict[str, Any]:
        """Keys: block, pages, and lost, stale and guessed (see Pages)."""
        fates = {name: getattr(self, name).as_json() for name in ("lost", "stale", "guessed")}
        return {"block": self.block, "pages": self.pages, **fates}


@dataclass(frozen=True)
class Piece:
    """A piece of the stream that is lost, in bytes, and what was noticed there."""

    offset: int
    end: int
    message: str

    def describe(self) -> str:
        """Return one line."""
        if self.end <= self.offset:
            return f"damaged at {self.offset:#x}: {self.message}"
        size = format_size(self.end - self.offset)
        return f"lost {size} of the stream, at {self.offset:#x}-{self.end:#x}: {self.message}"


@dataclass
class Survival:
    """The result: what was lost, and what was kept.

    `pieces`: of the stream, that are lost; `mended`: offsets in it where one bit was wrong, and it
    is known which; `blocks`: the RAM blocks; `unplaced`: pages whose block
    is not known; `ram_ends`: whether RAM was read up to its end; `rounds_lost`: whether whole
    rounds may be lost; `unlisted`: bytes of RAM whose
    blocks are not known. Devices are `kept` and `lost` as name and instance id; `described`:
    whether a description tells of them.
    """

    pieces: list[Piece] = field(default_factory=list)
    mended: list[int] = field(default_factory=list)
    blocks: list[BlockSurvival] = field(default_factory=list)
    unplaced: int = 0
    ram_ends: bool = True
    rounds_lost: bool = False
    unlisted: int = 0
    kept: list[tuple[str, int]] = field(default_factory=list)
    lost: list[tuple[str, int]] = field(default_factory=list)
    described: bool = True

    @property
    def whole(self) -> bool:
        """Nothing was lost, and nothing is in doubt."""
        if self.pieces or self.mended or self.unplaced or self.lost or self.unlisted:
            return False
        return not any(b.lost.count or b.stale.count or b.guessed.count for b in self.blocks)

    def summary(self) -> str:
        """Return what was kept, in a few words."""
        lost = sum(block.lost.count for block in self.blocks)
        pages = sum(block.pages for block in self.blocks)
        devices = f"{len(self.kept)}"
        if self.described:
            devices += f" of {len(self.kept) + len(self.lost)}"
        of_ram = f"{pages - lost} of {pages} pages, " if self.blocks else ""
        return f"kept: {of_ram}{devices} devices"

    def describe(self) -> list[str]:
        """Return a line for each kind of loss."""
        lines = [piece.describe() for piece in self.pieces]
        for offset in self.mended:
            lines.append(f"mended at {offset:#x}: one bit was wrong")
        lines += [line for block in self.blocks for line in block.describe()]
        if self.unplaced:
            lines.append(f"{self.unplaced} pages of a block that is not known were left out")
        if self.unlisted:
            size = format_size(self.unlisted)
            lines.append(f"{size} of RAM: their blocks are not known, their list is damaged")
        if not self.ram_ends:
            lines.append("RAM was not read up to its end: newer versions of any page may be lost")
        elif self.rounds_lost:
            lines.append("more than a round may be lost: newer versions of any page may be lost")
        if self.lost:
            lines.append(f"devices lost: {as_text(self.lost)}")
        if not self.described:
            lines.append(
                "the stream has no description that can be read: "
                "where devices end, and which are lost, is not certain"
            )
        return lines

    def as_json(self) -> dict[str, Any]:
        """Keys: pieces (of the stream: offset, end, message), mended (offsets), blocks (see
        BlockSurvival), unplaced (pages), unlisted (bytes), ram_ends, rounds_lost, devices: kept
        and lost (name, instance_id), described.
        """
        devices = {
            fate: [{"name": name, "instance_id": instance} for name, instance in found]
            for fate, found in (("kept", self.kept), ("lost", self.lost))
        }
        return {
            "pieces": [asdict(piece) for piece in self.pieces],
            "mended": self.mended,
            "blocks": [block.as_json() for block in self.blocks],
            "unplaced": self.unplaced,
            "unlisted": self.unlisted,
            "ram_ends": self.ram_ends,
            "rounds_lost": self.rounds_lost,
            "devices": {**devices, "described": self.described},
        }


class Survey:
    """Takes what comes of a damaged stream, and knows in the end what became of each page."""

    def __init__(self) -> None:
        self.result = Survival()
        self._listed: events.RamBlocks | None = None
        self._states: list[npt.NDArray[np.uint8]] = []
        self._guessing = False
        self._behind: Damage | None = None
        self._order = (-1, np.zeros(0, np.intp))
        """The index of the block that pages arrived for, and the numbers of the last two."""

    def take(self, event: Salvaged | Found) -> None:
        """Note the next event."""
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

    def spoil(self, run: events.PageRun | events.EncodedRun) -> None:
        """Pages that arrived, but whose encoding is damaged."""
        self._states[run.block_index][self._numbers(run)] = State.DAMAGED

    def miss(self, index: int, pages: npt.NDArray[np.intp] | slice) -> None:
        """Pages of a mapped-ram file that are not in it."""
        self._states[index][pages] = State.NEVER

    def doubt_block(self, index: int) -> None:
        """All pages of a block of a mapped-ram file, behind which nothing is where it should be:
        they may have been shifted."""
        states = self._states[index]
        states[states == State.SOUND] = State.GUESSED

    def finish(self, names: set[str], arrivals: Arrivals) -> Survival:
        """Return the result; `names`: of the blocks that are asked for. What `arrivals` knows as
        unplugged memory is not lost."""
        if self._behind is not None and self.result.ram_ends:
            self._mark(self._behind.before, None)
        for block, states in zip(self._blocks(), self._states, strict=True):
            if block.name in names:
                never, plugged = states == State.NEVER, arrivals.plugged(block)
                if plugged is not None:
                    never &= plugged
                fates = [
                    never | (states == State.DAMAGED),
                    states == State.STALE,
                    states == State.GUESSED,
                ]
                found = [self._ranges(mask) for mask in fates]
                self.result.blocks.append(BlockSurvival(block.name, len(states), *found))
        return self.result

    def _blocks(self) -> tuple[events.RamBlock, ...]:
        return () if self._listed is None else self._listed.blocks

    def _list(self, listed: events.RamBlocks) -> None:
        self._listed = listed
        try:
            for block in listed.blocks:
                count = block.length // listed.page_size
                # What a mapped-ram file has no page for is zero.
                mapped = block.mapped is not None and block.mapped.present
                make = np.ones if mapped else np.zeros
                self._states.append(make(count, np.uint8))
        except MemoryError:
            message = f"RAM of {listed.total} bytes is more than this machine can keep track of"
            raise CommandError(message) from None

    def _numbers(self, run: events.PageRun | events.EncodedRun) -> npt.NDArray[np.intp]:
        assert self._listed is not None
        return (run.offsets // np.uint64(self._listed.page_size)).astype(np.intp)

    def _take_pages(self, run: events.PageRun | events.EncodedRun) -> None:
        states, numbers = self._states[run.block_index], self._numbers(run)
        self._guessing = self._guessing and run.continued
        new = State.GUESSED if self._guessing else State.SOUND
        if isinstance(run, events.XbzrleRun):
            # It changes what was there, which has to be what the sender had.
            old = states[numbers]
            found = np.where(old == State.SOUND, new, State.DAMAGED)
            states[numbers] = np.where(old == State.GUESSED, old, found)
        else:
            states[numbers] = new
        self._look_at_order(run.block_index, numbers)

    def _look_at_order(self, index: int, numbers: npt.NDArray[np.intp]) -> None:
        """A page that stands alone out of order, and fits with one bit of its number turned, is
        likely another one, whose address was damaged."""
        block, before = self._order
        if block == index:
            numbers = np.concatenate((before, numbers))
        self._order = index, numbers[-2:]
        first, middle, last = numbers[:-2], numbers[1:-1], numbers[2:]
        alone = (first < last) & ~((first < middle) & (middle < last))
        for at in np.flatnonzero(alone)[:_MAX_ALONE].tolist():
            here, low, high = int(middle[at]), int(first[at]), int(last[at])
            if any(low < here ^ 1 << bit < high for bit in range(_NUMBER_BITS)):
                self._states[index][here] = State.DAMAGED
                self._mark_between((index, low + 1), (index, high))

    def _take_damage(self, damage: Damage) -> None:
        self.result.pieces.append(Piece(damage.offset, damage.end, damage.message))
        self._guessing = damage.guessed
        self._order = -1, np.zeros(0, np.intp)
        if damage.before is not None and damage.doubtful:
            self._state_of(damage.before, State.DAMAGED)
        self._behind = damage if damage.in_ram and damage.behind is None else None
        if damage.behind is not None:
            if self._was_there(damage.behind):
                # Not in the first round: others may have passed in what is lost.
                few = not damage.shifted and damage.end - damage.offset <= _MAX_OF_ONE_ROUND
                self.result.rounds_lost |= not few
            self._mark(damage.before, damage.behind)

    def _was_there(self, place: Place) -> bool:
        assert self._listed is not None
        state = self._states[place.block][place.address // self._listed.page_size]
        return bool(state != State.NEVER)

    def _state_of(self, place: Place, state: State) -> None:
        assert self._listed is not None
        self._states[place.block][place.address // self._listed.page_size] = state

    def _mark(self, before: Place | None, behind: Place | None) -> None:
        """Pages between two that had arrived may be stale; with the first round behind them, from
        the one to the end and from the beginning to the other."""
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
        for index, states in enumerate(self._states):
            first = start[1] if index == start[0] else 0
            last = end[1] if index == end[0] else len(states)
            if start[0] <= index <= end[0]:
                some = states[first:last]
                some[(some == State.SOUND) | (some == State.GUESSED)] = State.STALE

    def _ranges(self, mask: npt.NDArray[np.bool_]) -> Pages:
        assert self._listed is not None
        size = self._listed.page_size
        bounds = np.flatnonzero(np.diff(mask, prepend=False, append=False)) * size
        ranges = [(int(start), int(end)) for start, end in bounds.reshape(-1, 2)]
        return Pages(int(mask.sum()), ranges)
