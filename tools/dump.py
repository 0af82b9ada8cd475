"""What a stream holds: read piece by piece, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from os import SEEK_CUR
from typing import Any, BinaryIO

import click
import numpy as np

from ..guest.sizes import format_size
from ..protocol import events
from ..protocol.errors import UnsupportedError
from ..protocol.mapped_pages import read_pages
from ..protocol.ram import SECTION_NAME
from ..protocol.reader import StreamReader
from ..protocol.stream import CommandType, SectionType
from .readable import table

PIECE = 4 << 20

PAGE_KINDS = ("plain", "zero", "xbzrle", "compressed")
"""How pages may be sent."""


def read_events(stream: BinaryIO, page_size: int = 4096) -> Iterator[events.Event]:
    """All events of a stream; page data is valid until the next one is asked for.

    The pages of a mapped-ram file come behind the list of RAM blocks. `page_size`: bytes, where the
    stream does not say before its pages come.
    """
    reader = StreamReader(page_size=page_size)
    start = stream.tell() if stream.seekable() else None
    buffer = memoryview(bytearray(PIECE))
    kept = 0
    while not reader.finished:
        if start is not None and reader.to_skip:
            stream.seek(reader.to_skip, SEEK_CUR)
            reader.skip(reader.to_skip)
        count = stream.readinto(buffer[kept:])  # type: ignore[attr-defined]
        if not count:
            yield from reader.close()
            return
        found, done = reader.parse(buffer[: kept + count])
        for event in found:
            yield event
            if isinstance(event, events.RamBlocks) and any(b.mapped for b in event.blocks):
                yield from _mapped_pages(stream, start, event)
        rest = bytes(buffer[done : kept + count])
        buffer[: len(rest)] = rest
        kept = len(rest)


def from_a_pipe(listed: events.RamBlocks) -> UnsupportedError:
    """What is wrong with a mapped-ram stream that cannot be sought in."""
    message = "a mapped-ram stream is read from a file, not from a pipe"
    return UnsupportedError(message, offset=listed.offset, section=SECTION_NAME)


def _mapped_pages(
    stream: BinaryIO, start: int | None, listed: events.RamBlocks
) -> Iterator[events.Event]:
    if start is None:
        raise from_a_pipe(listed)
    first, behind = start, stream.tell()

    def read_at(position: int, size: int) -> bytes:
        stream.seek(first + position)
        return stream.read(size)

    yield from read_pages(listed, read_at)
    stream.seek(behind)


@dataclass
class BlockSummary:
    """Pages of one RAM block, by kind."""

    name: str
    length: int
    plain: int = 0
    zero: int = 0
    xbzrle: int = 0
    compressed: int = 0


@dataclass
class SectionSummary:
    """An iterative section other than `ram`. `known`: what it holds was read."""

    name: str
    section_id: int
    instance_id: int
    version: int
    pieces: int = 0
    known: bool = True


@dataclass
class Summary:
    """What `dump` tells of a stream."""

    machine: str | None = None
    page_size: int = 4096
    capabilities: list[str] = field(default_factory=list)
    size: int = 0
    ram_parts: int = 0
    commands: list[int] = field(default_factory=list)
    blocks: list[BlockSummary] = field(default_factory=list)
    devices: list[events.DeviceSection] = field(default_factory=list)
    configuration: events.Configuration | None = None
    description: events.Description | None = None
    sections: dict[int, SectionSummary] = field(default_factory=dict)
    """By section id."""
    last: SectionSummary | None = None
    """The one whose piece came last."""
    footers: bool = True
    unsplit: int = 0
    """Bytes of device sections that cannot be told apart."""

    def as_json(self) -> dict[str, Any]:
        """Keys: machine, page_size, capabilities, size, ram_parts, commands, blocks, sections,
        devices, unsplit_devices, footers, description."""
        return {
            "machine": self.machine,
            "page_size": self.page_size,
            "capabilities": self.capabilities,
            "size": self.size,
            "ram_parts": self.ram_parts,
            "commands": self.commands,
            "blocks": [asdict(block) for block in self.blocks],
            "sections": [asdict(section) for section in self.sections.values()],
            "devices": [self.device_as_json(device) for device in self.devices],
            "unsplit_devices": self.unsplit,
            "footers": self.footers,
            "description": self.description is not None,
        }

    @staticmethod
    def device_as_json(device: events.DeviceSection) -> dict[str, Any]:
        """Keys: name, section_id, instance_id, version, offset (of its payload), size (bytes)."""
        return {
            "name": device.name,
            "section_id": device.section_id,
            "instance_id": device.instance_id,
            "version": device.version,
            "offset": device.payload_offset,
            "size": len(device.payload),
        }


@dataclass(frozen=True)
class Pages:
    """Pages of one kind that follow each other in RAM and in the stream.

    `offset`: in the stream, of the first one's record; `first`: in the block, of the first page.
    """

    offset: int
    block: str
    first: int
    count: int
    kind: str
    """`plain`, `zero`, `xbzrle` or `compressed`, as the records are."""
    fill: int | None = None
    """Of `zero` pages, the byte that they hold."""


def split_run(run: events.PageRun | events.EncodedRun, page_size: int) -> Iterator[Pages]:
    """The records of a run follow each other in the stream; its pages may lie anywhere."""
    kind, fill = _kind(run), None
    if isinstance(run, events.PageRun) and run.data is None:
        fill = run.fill
    breaks = np.flatnonzero(np.diff(run.offsets.astype(np.int64)) != page_size) + 1
    for start, end in pairwise([0, *breaks.tolist(), len(run.offsets)]):
        offset = run.record_offset(start)
        yield Pages(offset, run.block.name, int(run.offsets[start]), end - start, kind, fill)


def _kind(run: events.PageRun | events.EncodedRun) -> str:
    if isinstance(run, events.PageRun):
        return "zero" if run.data is None else "plain"
    return "xbzrle" if isinstance(run, events.XbzrleRun) else "compressed"


def print_pages(pages: Pages) -> None:
    """One line."""
    kind = f"{pages.kind} (all {pages.fill:#04x})" if pages.fill else pages.kind
    click.echo(f"{pages.offset:#12x}  {pages.block}  {pages.first:#x}  {pages.count} {kind}")


def print_pages_as_json(pages: Pages) -> None:
    """An object on one line. Keys: offset, block, first, count, kind, fill."""
    click.echo(json.dumps(asdict(pages)))


def summarise(
    stream: BinaryIO, page_size: int = 4096, on_pages: Callable[[Pages], None] | None = None
) -> Summary:
    """Read all of it, and tell `on_pages` of every range of pages; `page_size` as in `read_events`.

    Raises StreamError.
    """
    summary = Summary(page_size=page_size)
    for event in read_events(stream, page_size):
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            block = summary.blocks[event.block_index]
            setattr(block, _kind(event), getattr(block, _kind(event)) + len(event.offsets))
            if on_pages is not None:
                for pages in split_run(event, summary.page_size):
                    on_pages(pages)
        else:
            _note(summary, event)
    return summary


def _note(summary: Summary, event: events.Event) -> None:
    summary.size = max(summary.size, event.offset)
    note = _NOTES.get(type(event))
    if note is not None:
        note(summary, event)


def _note_configuration(summary: Summary, event: events.Configuration) -> None:
    summary.configuration = event
    summary.machine = event.machine
    summary.capabilities = list(event.capabilities or ())


def _note_ram(summary: Summary, event: events.RamSection) -> None:
    summary.ram_parts += event.kind == SectionType.PART


def _note_blocks(summary: Summary, event: events.RamBlocks) -> None:
    summary.page_size = event.page_size
    summary.blocks = [BlockSummary(block.name, block.length) for block in event.blocks]


def _note_piece(summary: Summary, event: events.IterativeSection) -> None:
    section = summary.sections.setdefault(
        event.section_id,
        SectionSummary(event.name, event.section_id, event.instance_id, event.version),
    )
    section.pieces += 1
    summary.last = section


def _note_opaque(summary: Summary, _: events.OpaquePiece) -> None:
    assert summary.last is not None
    summary.last.known = False


def _note_no_footers(summary: Summary, _: events.NoFooters) -> None:
    summary.footers = False


def _note_unsplit(summary: Summary, event: events.UnsplitDevices) -> None:
    summary.unsplit = len(event.data)


def _note_end(summary: Summary, event: events.EndOfStream) -> None:
    summary.size = event.offset + 1


def _note_description(summary: Summary, event: events.Description) -> None:
    summary.description = event
    summary.size = event.offset + 5 + len(event.text)


_NOTES: dict[type, Callable[[Summary, Any], None]] = {
    events.Configuration: _note_configuration,
    events.RamSection: _note_ram,
    events.RamBlocks: _note_blocks,
    events.IterativeSection: _note_piece,
    events.OpaquePiece: _note_opaque,
    events.NoFooters: _note_no_footers,
    events.UnsplitDevices: _note_unsplit,
    events.DeviceSection: lambda summary, event: summary.devices.append(event),
    events.Command: lambda summary, event: summary.commands.append(event.command),
    events.EndOfStream: _note_end,
    events.Description: _note_description,
}


def print_summary(summary: Summary, *, devices: bool) -> None:
    """For people."""
    click.echo(f"machine      {summary.machine or 'not named'}")
    click.echo(f"page size    {summary.page_size}")
    click.echo(f"size         {format_size(summary.size)} ({summary.size} bytes)")
    if summary.capabilities:
        click.echo(f"capabilities {' '.join(summary.capabilities)}")
    click.echo(f"ram parts    {summary.ram_parts}")
    for section in summary.sections.values():
        unknown = "" if section.known else ", of an unknown kind"
        click.echo(f"section      {section.name}, {section.pieces} pieces{unknown}")
    if summary.commands:
        names = (CommandType(command).name for command in summary.commands)
        click.echo(f"commands     {' '.join(names)}")
    click.echo(f"devices      {len(summary.devices)} sections")
    if not summary.footers:
        click.echo("footers      no")
    if summary.unsplit:
        told = "without footers, their description does not tell them apart"
        click.echo(f"unsplit      {summary.unsplit} bytes of devices: {told}")
    click.echo(f"description  {'yes' if summary.description else 'no'}")
    rows = [
        (block.name, format_size(block.length), *(str(getattr(block, kind)) for kind in PAGE_KINDS))
        for block in summary.blocks
    ]
    head = ("RAM block", "length", *(f"{kind} pages" for kind in PAGE_KINDS))
    print_table([head, *rows])
    if devices:
        _list_devices(summary)


def _list_devices(summary: Summary) -> None:
    rows = [
        (
            str(section.section_id),
            section.name,
            str(section.instance_id),
            str(section.version),
            f"{section.payload_offset:#x}",
            str(len(section.payload)),
        )
        for section in summary.devices
    ]
    print_table([("id", "device", "instance", "version", "offset", "bytes"), *rows])


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """See `table`; a step to the right."""
    for line in table(rows):
        click.echo(f" {line}")
