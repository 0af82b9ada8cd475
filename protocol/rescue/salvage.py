"""Read the rest of a damaged stream: the records of RAM after each damage.

Certain data is returned as the events of a sound stream; Damage reports each lost piece, and
Unplaced reports pages of an unknown block. The bytes come from a function that reads anywhere in
the stream, in pieces of a bounded size; each byte is examined a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .. import events
from ..errors import CutError, StreamError
from ..formats.zstd import CompressedError
from ..reading.ram_reader import RamReader
from ..sections.registry import SectionReader
from ..wire import stream
from ..wire.block import SECTION_NAME as DISKS
from ..wire.cursor import Cursor, Incomplete
from ..wire.marks import RamFlag, SectionType
from ..wire.ram import RECORD_HEADER_SIZE
from .resync import Found, Layout, Step, find_records, leads_on
from .tail import FOOTER_SIZE, ReadAt

PIECE = 4 << 20
"""Bytes that are read at once; more than any record has."""
WINDOW = 1 << 20
"""Bytes in which records are searched for at once."""
_Step: TypeAlias = Callable[[Cursor], Sequence[events.Event]]
Arrived: TypeAlias = Callable[[int, npt.NDArray[np.intp]], bool]
"""Function that returns whether any of some pages arrived before.

Arguments: index of a block, numbers of its pages (n,).
"""
_SAMPLE = 1024
"""Number of pages by which a block is found that lacks these pages."""
_UNKNOWN = -1
"""The index of a block that is not known."""

_MAX_MENDED = 256
"""Limit for the places of one stream where a bit is corrected."""


@dataclass(frozen=True)
class Place:
    """A page: the index of its block, and its position in the block, in bytes."""

    block: int
    address: int


@dataclass(frozen=True)
class Damage:
    """The bytes from `offset` to `end` of the stream, which are lost.

    `message`: the fault; `before`: the last page before them, `doubtful` if the damage may have
    begun in it; `behind`: the first page after them. Each is None if there is no such page, or if
    its block is not known. `guessed`: pages after them, up to the next record that names its block,
    are assigned to the block before them, which is likely but not certain. `in_ram`: the damage may
    have cost pages; `shifted`: bytes may be missing, so that more is lost than these.
    """

    offset: int
    end: int
    message: str
    before: Place | None
    behind: Place | None = None
    doubtful: bool = False
    guessed: bool = False
    in_ram: bool = True
    shifted: bool = True


@dataclass(frozen=True)
class Unplaced:
    """Pages after damage, `count` from `offset` on, whose block is not known."""

    offset: int
    count: int


@dataclass(frozen=True)
class Mended:
    """A wrong bit at `offset`, in the header of a record or section, that was corrected.

    All else confirms the correction.
    """

    offset: int


@dataclass(frozen=True)
class Failure:
    """The place where reading stopped, and the reason.

    `offset`: in the stream; `record`: where the last page record begins; `before`, `doubtful`: as
    in Damage; `stride`: bytes of each of the last records, the next of which would begin at
    `offset`, or 0 if their sizes differ.
    """

    offset: int
    message: str
    record: int
    before: Place | None
    doubtful: bool
    stride: int


Salvaged: TypeAlias = events.Event | Damage | Mended | Unplaced


class Progress:
    """Keeps what a Failure reports about the events before it."""

    def __init__(self, offset: int) -> None:
        self.before: Place | None = None
        self._record = offset
        self._last: events.Event | None = None

    def take(self, event: events.Event) -> None:
        """Note the next event."""
        self._last = event
        if isinstance(event, events.MappedRun):
            return
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            last = len(event.offsets) - 1
            self.before = Place(event.block_index, int(event.offsets[last]))
            self._record = event.record_offset(last)
        else:
            self._record = max(self._record, event.offset)

    def failure(self, error: StreamError) -> Failure:
        """Return the failure after these events.

        If the stream only ends early, the last page is not doubtful.
        """
        ended = isinstance(error, (CutError, CompressedError))
        page = isinstance(self._last, (events.PageRun, events.EncodedRun)) and not ended
        stride = 0
        if page and isinstance(self._last, events.PageRun):
            body = 1 if self._last.data is None else self._last.data.shape[1]
            stride = RECORD_HEADER_SIZE + body
        offset = max(error.offset, self._record)
        return Failure(offset, error.message, self._record, self.before, page, stride)


def _differ_by_one_bit(one: bytes, other: bytes) -> bool:
    difference = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return len(one) == len(other) and difference.bit_count() == 1


@dataclass(frozen=True)
class _Ahead:
    """The records ahead that continue an unknown block.

    `count`: number of pages; `sample`: offsets of the first ones; `highest`: highest offset of any;
    `named`: the next record that names its block, or None.
    """

    count: int
    sample: npt.NDArray[np.uint64]
    highest: int
    named: events.PageRun | events.EncodedRun | None


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
        ram: RamReader,
        sections: dict[int, tuple[events.IterativeSection, SectionReader]],
        ram_end: int | None,
        arrived: Arrived,
        *,
        footers: bool = True,
    ) -> None:
        assert ram.section is not None
        self._arrived = arrived
        self._read_at = read_at
        self._end = size if ram_end is None else ram_end
        self._ram_end = ram_end
        self._ram = ram
        self._footers = footers
        section = ram.section
        self._sections = {**sections, section.section_id: (section, ram)}
        self._blocks: Sequence[events.RamBlock] = [*ram.block_list.blocks.values()]
        names = {block.name.encode(): block for block in self._blocks}
        self._layout = Layout(ram.page_size, names, section.section_id, footers)
        self._unknown = events.RamBlock("", self._layout.limit)
        ram.block_list.indexes[""] = _UNKNOWN
        self._current: tuple[events.IterativeSection, SectionReader] = self._sections[
            section.section_id
        ]
        self._step: _Step = self._records
        self._patches: dict[int, bytes] = {}
        self._failure: Failure | None = None
        self.behind_ram: int | None = None
        """Position of the first section after RAM, if reading came that far."""

    def read(self, failure: Failure) -> Iterator[Salvaged]:
        """Yield all that can be recovered of RAM, and of sections between its pieces."""
        going: Failure | None = failure
        while going is not None:
            mended = self._mend(going)
            if mended is not None:
                yield Mended(going.offset)
                yield from self._walk(going.offset, *mended)
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
        failure = self._failure
        if failure is None:
            return None
        if failure.before is None:
            failure = replace(failure, before=before, doubtful=False)
        return replace(failure, record=max(failure.record, record))

    def _mend(self, failure: Failure) -> tuple[events.RamBlock, _Step] | None:
        """Correct one bit at the failure; return the block and the step to continue with.

        Returns None unless exactly one bit makes the records after it follow.
        """
        if failure.before is None or len(self._patches) == _MAX_MENDED:
            return None
        place, block = failure.offset, self._blocks[failure.before.block]
        found = [
            (patch, step)
            for patch, step in self._patches_for(failure)
            if self._confirms(place, patch, step)
        ]
        if len(found) != 1:
            return None
        patch, step = found[0]
        self._patches[place] = patch
        return block, step

    def _patches_for(self, failure: Failure) -> Iterator[tuple[bytes, _Step]]:
        """Yield corrections of one bit at the failure, and the step that reads each."""
        assert failure.before is not None
        raw = self._read_at(failure.offset, 2 * FOOTER_SIZE)
        section_id = self._layout.section_id
        footer, part = stream.section_footer(section_id), stream.section_part(section_id)
        for head in (part, bytes([SectionType.END]) + part[1:]):
            for whole, step in ((footer + head, self._footer), (head, self._part)):
                if _differ_by_one_bit(raw[: len(whole)], whole):
                    yield whole, step
        value = int.from_bytes(raw[:RECORD_HEADER_SIZE], "big")
        block = self._blocks[failure.before.block]
        for bit in range(8 * RECORD_HEADER_SIZE):
            turned = value ^ 1 << bit
            address = turned & -self._layout.page_size
            ascends = failure.before.address < address < block.length
            if ascends or turned == RamFlag.EOS:
                yield turned.to_bytes(RECORD_HEADER_SIZE, "big"), self._records

    def _confirms(self, place: int, patch: bytes, step: _Step) -> bool:
        """Return whether records follow if `patch` is at `place`."""
        skip = 0 if step == self._records else len(patch)
        size = 3 * self._layout.min_chain
        data = patch + self._read_at(place + len(patch), min(size, self._end - place))
        ends = self._ram_end is not None and place + len(data) >= self._end
        return leads_on(memoryview(data)[skip:], self._layout, len(data) - skip if ends else None)

    def _read(self, place: int, size: int) -> bytes:
        """Return the bytes at `place`, with corrections applied."""
        data = self._read_at(place, size)
        for at, patch in self._patches.items():
            if place <= at and at + len(patch) <= place + len(data):
                data = data[: at - place] + patch + data[at - place + len(patch) :]
        return data

    def _go_on(
        self, found: Found, damage: Damage, failure: Failure
    ) -> Generator[Salvaged, None, Place | None]:
        """Yield the events from `found` up to the next damage; return the last known page."""
        position, block = found.position, found.block
        if block is None:
            block, damage, ahead = self._decide(position, damage, failure)
            if block is None:
                yield Unplaced(position, ahead.count)
                if ahead.named is None:
                    yield damage
                    return damage.before
                position, block = ahead.named.offset, self._unknown
        told = False
        for event in self._walk(position, block):
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

    def _decide(
        self, position: int, damage: Damage, failure: Failure
    ) -> tuple[events.RamBlock | None, Damage, _Ahead]:
        """Return the block that the records at `position` continue.

        That is the only block that they fit into, or whose gap they fill; else, as a guess, the
        block before the damage, or None.
        """
        ahead = self._look_ahead(position)
        named = None if ahead.named is None else ahead.named.block
        fitting = [b for b in self._blocks if b.length > ahead.highest and b is not named]
        if len(fitting) == 1:
            return fitting[0], damage, ahead
        if damage.before is None:
            return None, damage, ahead
        before, certain = self._blocks[damage.before.block], False
        if failure.stride and before in fitting and ahead.count:
            lost, rest = divmod(position - failure.offset, failure.stride)
            filled = damage.before.address + (lost + 1) * self._layout.page_size
            certain = not rest and lost >= 0 and int(ahead.sample[0]) == filled
        guess = before if certain else self._guess(before, fitting, ahead)
        return guess, replace(damage, guessed=guess is not None and not certain), ahead

    def _guess(
        self, before: events.RamBlock, fitting: list[events.RamBlock], ahead: _Ahead
    ) -> events.RamBlock | None:
        """Return the likely block of the records ahead, or None.

        That is the block before the damage, or, in the first round, one that lacks the pages.
        """
        numbers = (ahead.sample // np.uint64(self._layout.page_size)).astype(np.intp)
        indexes = self._ram.block_list.indexes
        lacking = [b for b in fitting if not self._arrived(indexes[b.name], numbers)]
        # In the first round, a block is sent to its end before the next one.
        page_size = self._layout.page_size
        whole = [b for b in lacking if ahead.named and b.length == ahead.highest + page_size]
        if whole:
            return before if before in whole else whole[0]
        if lacking and before not in lacking:
            behind = [b for b in lacking if indexes[b.name] > indexes[before.name]]
            return (behind or lacking)[0]
        return before if before in fitting else None

    def _look_ahead(self, position: int) -> _Ahead:
        """Read records of an unknown block, until one names a block or only one block fits."""
        count, sample, highest = 0, np.zeros(0, np.uint64), -1
        for event in self._walk(position, self._unknown):
            if not isinstance(event, (events.PageRun, events.EncodedRun)):
                continue
            if not event.continued:
                return _Ahead(count, sample, highest, event)
            sample = np.concatenate((sample, event.offsets[: _SAMPLE - len(sample)]))
            count += len(event.offsets)
            highest = max(highest, int(event.offsets.max()))
            if sum(block.length > highest for block in self._blocks) == 1:
                break
        return _Ahead(count, sample, highest, None)

    def _walk(
        self, position: int, block: events.RamBlock, step: _Step | None = None
    ) -> Iterator[events.Event]:
        """Yield the events from a record on, up to damage (`_failure`) or the end of `ram`."""
        self._ram.resume(block)
        self._current = self._sections[self._layout.section_id]
        self._step, self._failure, self.behind_ram = step or self._records, None, None
        progress = Progress(position)
        while position < self._end:
            view = memoryview(self._read(position, min(PIECE, self._end - position)))
            cursor = Cursor(view, position)
            found: list[events.Event] = []
            error: StreamError | None = None
            try:
                while self.behind_ram is None:
                    found += self._step(cursor)
                    cursor.commit()
            except Incomplete:
                pass
            except StreamError as failed:
                error = failed
            for event in found:
                progress.take(event)
                yield event
            if self.behind_ram is not None:
                return
            ended = not cursor.done and error is None
            if ended:
                message = "the stream ends early, in: records"
                error = CutError(message, offset=position + len(view))
            if error is not None:
                self._failure = progress.failure(error)
                return
            position += cursor.done

    # The steps, like those of the reader.

    def _records(self, cursor: Cursor) -> Sequence[events.Event]:
        reading = self._current[1]
        found = reading.read(cursor)
        if reading.at_end:
            self._step = self._footer if self._footers else self._part
        return found

    def _footer(self, cursor: Cursor) -> Sequence[events.Event]:
        start, section_id = cursor.offset, self._current[0].section_id
        cursor.peek(FOOTER_SIZE - 1)
        if cursor.view[cursor.position :][:FOOTER_SIZE] != stream.section_footer(section_id):
            raise StreamError("no footer where a section's footer stands", offset=start)
        cursor.position += FOOTER_SIZE
        self._step = self._part
        return [events.Footer(start, section_id)]

    def _part(self, cursor: Cursor) -> Sequence[events.Event]:
        start = cursor.offset
        if start >= self._end:
            self.behind_ram = start
            return []
        kind = cursor.peek()
        if kind == SectionType.COMMAND:
            # Commands are for the other end of a channel.
            cursor.take(stream.Command)
            return []
        if kind in (SectionType.FULL, SectionType.EOF):
            self.behind_ram = start
            return []
        if kind not in (SectionType.PART, SectionType.END):
            raise StreamError(f"byte {kind:#04x} where a section begins", offset=start)
        header = cursor.take(stream.SectionContinuation)
        if header.section_id not in self._sections:
            message = f"section id {header.section_id} goes on, but was not begun or has ended"
            raise StreamError(message, offset=start)
        self._current = self._sections[header.section_id]
        section, reading = self._current
        reading.begin(SectionType(kind))
        self._step = self._records
        return [replace(section, offset=start, kind=SectionType(kind))]
