"""What a stream holds: read piece by piece, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.table import Table

from ..guest.sizes import format_size
from ..protocol import events
from ..protocol.reader import StreamReader
from ..protocol.stream import SectionType

PIECE = 4 << 20


def read_events(stream: BinaryIO) -> Iterator[events.Event]:
    """All events of a stream; page data is valid until the next one is asked for."""
    reader = StreamReader()
    buffer = memoryview(bytearray(PIECE))
    kept = 0
    while not reader.finished:
        count = stream.readinto(buffer[kept:])  # type: ignore[attr-defined]
        if not count:
            yield from reader.close()
            return
        found, done = reader.parse(buffer[: kept + count])
        yield from found
        rest = bytes(buffer[done : kept + count])
        buffer[: len(rest)] = rest
        kept = len(rest)


@dataclass
class BlockSummary:
    """Pages of one RAM block, by kind."""

    name: str
    length: int
    plain: int = 0
    zero: int = 0


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
    description: bool = False

    def as_json(self) -> dict[str, Any]:
        """Keys: machine, page_size, capabilities, size, ram_parts, commands, blocks, devices,
        description."""
        return {
            "machine": self.machine,
            "page_size": self.page_size,
            "capabilities": self.capabilities,
            "size": self.size,
            "ram_parts": self.ram_parts,
            "commands": self.commands,
            "blocks": [
                {"name": b.name, "length": b.length, "plain": b.plain, "zero": b.zero}
                for b in self.blocks
            ],
            "devices": [
                {
                    "name": d.name,
                    "section_id": d.section_id,
                    "instance_id": d.instance_id,
                    "version": d.version,
                    "offset": d.payload_offset,
                    "size": len(d.payload),
                }
                for d in self.devices
            ],
            "description": self.description,
        }


def print_run(run: events.PageRun) -> None:
    """One line for one run of pages."""
    kind = "zero" if run.data is None else "plain"
    first = int(run.offsets[0])
    click.echo(f"{run.offset:#12x}  {run.block.name}  {first:#x}  {len(run.offsets)} {kind}")


def summarise(stream: BinaryIO, on_run: Callable[[events.PageRun], None] | None = None) -> Summary:
    """Read all of it. Raises StreamError."""
    summary = Summary()
    for event in read_events(stream):
        if isinstance(event, events.PageRun):
            _count(summary, event)
            if on_run is not None:
                on_run(event)
        else:
            _note(summary, event)
    return summary


def _count(summary: Summary, run: events.PageRun) -> None:
    block = summary.blocks[run.block_index]
    if run.data is None:
        block.zero += len(run.offsets)
    else:
        block.plain += len(run.offsets)


def _note(summary: Summary, event: events.Event) -> None:
    summary.size = max(summary.size, event.offset)
    if isinstance(event, events.Configuration):
        summary.machine = event.machine
        summary.page_size = event.page_size or summary.page_size
        summary.capabilities = list(event.capabilities or ())
    elif isinstance(event, events.RamSection) and event.kind == SectionType.PART:
        summary.ram_parts += 1
    elif isinstance(event, events.RamBlocks):
        summary.blocks = [BlockSummary(block.name, block.length) for block in event.blocks]
    elif isinstance(event, events.DeviceSection):
        summary.devices.append(event)
    elif isinstance(event, events.Command):
        summary.commands.append(event.command)
    elif isinstance(event, events.EndOfStream):
        summary.size = event.offset + 1
    elif isinstance(event, events.Description):
        summary.description = True
        summary.size = event.offset + 5 + len(event.text)


def print_summary(summary: Summary, *, devices: bool) -> None:
    """For people."""
    click.echo(f"machine      {summary.machine}")
    click.echo(f"page size    {summary.page_size}")
    click.echo(f"size         {format_size(summary.size)} ({summary.size} bytes)")
    if summary.capabilities:
        click.echo(f"capabilities {' '.join(summary.capabilities)}")
    click.echo(f"ram parts    {summary.ram_parts}")
    click.echo(f"devices      {len(summary.devices)} sections")
    click.echo(f"description  {'yes' if summary.description else 'no'}")
    table = Table("RAM block", "length", "plain pages", "zero pages", box=None)
    for block in summary.blocks:
        table.add_row(block.name, format_size(block.length), str(block.plain), str(block.zero))
    Console().print(table)
    if devices:
        _print_devices(summary)


def _print_devices(summary: Summary) -> None:
    table = Table("id", "device", "instance", "version", "offset", "bytes", box=None)
    for section in summary.devices:
        table.add_row(
            str(section.section_id),
            section.name,
            str(section.instance_id),
            str(section.version),
            f"{section.payload_offset:#x}",
            str(len(section.payload)),
        )
    Console().print(table)
