"""Summarises the content of a stream, which is read piece by piece in constant memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ...protocol import events
from ...protocol.fast.outline import Device
from ...protocol.pages.rounds import Rounds
from ...protocol.wire.marks import DEFAULT_PAGE_SIZE, SectionType
from ..console.text import echo
from ..sources.stream_events import USUALLY, Behind, Found, How, read_events
from .summary import BlockSummary, PageCount, SectionSummary, Summary

if TYPE_CHECKING:
    from ..sources.channels import Channels

_Split = Callable[[int, npt.NDArray[np.intp]], Iterator[tuple[int, int]]]
"""A method of `Rounds` that splits pages of a block, given by number, into rounds. Each result is a
round and the number of its pages.
"""


@dataclass
class WithDevices(Summary):
    """A summary with the events that the fields of its devices are decoded from."""

    configuration: events.Configuration | None = None
    sections_of_devices: list[events.DeviceSection] = field(default_factory=list)
    described: events.Description | None = None


def device_of(section: events.DeviceSection) -> Device:
    """Return the summary of a device section."""
    ids = (section.name, section.section_id, section.instance_id, section.version)
    return Device(*ids, section.payload_offset, len(section.payload))


@dataclass(frozen=True)
class Pages:
    """Pages of one kind that are contiguous in RAM and in the stream.

    `offset` is that of the first page's record in the stream; `first` is the offset of the first
    page in the block.
    """

    offset: int
    block: str
    first: int
    count: int
    kind: str
    """The kind of the records: `plain`, `zero`, `xbzrle` or `compressed`."""
    fill: int | None = None
    """The byte that fills `zero` pages."""
    channel: int | None = None
    """The multifd channel that sent the pages, in which `offset` counts; None: the main one."""


def split_run(run: events.PageRun | events.EncodedRun, page_size: int) -> Iterator[Pages]:
    """Yield the parts of a run that are contiguous in RAM; its records are contiguous in the
    stream.
    """
    kind, fill, channel = _kind(run), None, None
    if isinstance(run, events.MultifdRun):
        channel = run.channel
    if isinstance(run, events.PageRun) and run.data is None:
        fill = run.fill
    breaks = np.flatnonzero(np.diff(run.offsets.astype(np.int64)) != page_size) + 1
    for start, end in pairwise([0, *breaks.tolist(), len(run.offsets)]):
        offset = run.record_offset(start)
        first, count = int(run.offsets[start]), end - start
        yield Pages(offset, run.block.name, first, count, kind, fill, channel)


def _kind(run: events.PageRun | events.EncodedRun) -> str:
    if isinstance(run, events.PageRun):
        return "zero" if run.data is None else "plain"
    return "xbzrle" if isinstance(run, events.XbzrleRun) else "compressed"


def print_pages(pages: Pages) -> None:
    """Print the pages on one line."""
    kind = f"{pages.kind} (all {pages.fill:#04x})" if pages.fill else pages.kind
    where = "" if pages.channel is None else f"channel {pages.channel}  "
    echo(f"{where}{pages.offset:#12x}  {pages.block}  {pages.first:#x}  {pages.count} {kind}")


def print_pages_as_json(pages: Pages) -> None:
    """Print the pages as a JSON object on one line.

    The keys are offset, block, first, count, kind, fill, channel (null for the main channel).
    """
    echo(json.dumps(asdict(pages)))


def summarise(
    stream: BinaryIO,
    how: How = USUALLY,
    on_pages: Callable[[Pages], None] | None = None,
    channels: Channels | None = None,
) -> WithDevices:
    """Read the whole stream, and call `on_pages` with each range of pages.

    `how` and `channels` are those of `read_events`. Raises StreamError.
    """
    summary, rounds = WithDevices(page_size=how.page_size or DEFAULT_PAGE_SIZE), Rounds()
    split = rounds.split if channels is None else rounds.split_interval
    for event in read_events(stream, how, channels):
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            _count(summary, event, split)
            if on_pages is not None:
                for pages in split_run(event, summary.page_size):
                    on_pages(pages)
        else:
            if isinstance(event, (events.MultifdFlush, events.EndOfRam)):
                rounds.end_interval()
            _note(summary, event)
    if channels is not None:
        summary.channels = channels.counts
    return summary


def _count(summary: Summary, run: events.PageRun | events.EncodedRun, split: _Split) -> None:
    kind = _kind(run)
    pages = summary.blocks[run.block_index].pages
    pages.add(kind, len(run.offsets))
    if isinstance(run, events.MappedRun):
        pages.zero -= len(run.offsets)
        return
    numbers = (run.offsets // np.uint64(summary.page_size)).astype(np.intp)
    for number, count in split(run.block_index, numbers):
        while number >= len(summary.rounds):
            summary.rounds.append(PageCount())
        summary.rounds[number].add(kind, count)


def _note(summary: WithDevices, event: Found) -> None:
    summary.size = max(summary.size, event.offset)
    if summary.piece is not None and isinstance(event, _BEHIND_A_PIECE):
        section, start = summary.piece
        section.size += event.offset - start
        summary.piece = None
    note = _NOTES.get(type(event))
    if note is not None:
        note(summary, event)


def _note_device(summary: WithDevices, event: events.DeviceSection) -> None:
    summary.devices.append(device_of(event))
    summary.sections_of_devices.append(event)


def _note_configuration(summary: WithDevices, event: events.Configuration) -> None:
    summary.configuration = event
    summary.machine = event.machine
    summary.capabilities = list(event.capabilities or ())


def _note_ram(summary: Summary, event: events.RamSection) -> None:
    summary.ram_parts += event.kind == SectionType.PART
    _note_piece(summary, event)


def _note_blocks(summary: Summary, event: events.RamBlocks) -> None:
    summary.page_size = event.page_size
    for block in event.blocks:
        # A page that is not in a mapped-ram file is zero.
        mapped = block.mapped is not None and block.mapped.present
        pages = PageCount(zero=block.length // event.page_size if mapped else 0)
        listed = BlockSummary(block.name, block.length, block.may_be_absent, pages)
        summary.blocks.append(listed)


def _note_piece(summary: Summary, event: events.IterativeSection) -> None:
    section = summary.sections.setdefault(
        event.section_id,
        SectionSummary(event.name, event.section_id, event.instance_id, event.version),
    )
    section.pieces += 1
    summary.piece = section, event.offset


def _note_opaque(summary: Summary, _: events.OpaquePiece) -> None:
    assert summary.piece is not None
    summary.piece[0].known = False


def _note_no_footers(summary: Summary, _: events.NoFooters) -> None:
    summary.footers = False


def _note_unsplit(summary: Summary, event: events.UnsplitDevices) -> None:
    summary.unsplit = len(event.data)


def _note_behind(summary: WithDevices, event: Behind) -> None:
    summary.behind = event.left


def _note_end(summary: Summary, event: events.EndOfStream) -> None:
    summary.size = event.offset + 1


def _note_description(summary: WithDevices, event: events.Description) -> None:
    summary.described = event
    summary.description = len(event.text)
    summary.size = event.offset + 5 + len(event.text)


_BEHIND_A_PIECE = (
    events.IterativeSection,
    events.DeviceSection,
    events.UnsplitDevices,
    events.Command,
    events.EndOfStream,
)
_NOTES: dict[type, Callable[[WithDevices, Any], None]] = {
    events.Configuration: _note_configuration,
    events.RamSection: _note_ram,
    events.RamBlocks: _note_blocks,
    events.IterativeSection: _note_piece,
    events.OpaquePiece: _note_opaque,
    events.NoFooters: _note_no_footers,
    events.UnsplitDevices: _note_unsplit,
    events.DeviceSection: _note_device,
    events.Command: lambda summary, event: summary.commands.append(event.command),
    events.EndOfStream: _note_end,
    events.Description: _note_description,
    Behind: _note_behind,
}
