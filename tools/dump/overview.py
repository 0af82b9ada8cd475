"""Prints the overview of a stream that `dump` shows to users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...guest.sizes import format_size
from ...protocol.wire.marks import RAM_SECTION, CommandType
from ..console.tables import table
from ..console.text import echo
from ..sources.channel_count import ChannelCount
from .summary import PAGE_KINDS, PageCount, Summary

_CHANNEL_KINDS = ("plain pages", "zero pages")
MOST_ROUNDS = 12
"""The most rounds that are printed; of more rounds, only the first and the last ones are."""


def print_summary(summary: Summary, *, devices: bool) -> None:
    """Print the summary, with a list of the devices if `devices` is set."""
    for name, value in _lines(summary):
        echo(f"{name:12} {value}")
    kinds = _kinds(summary)
    tables = [[*_blocks(summary, kinds)]]
    if len(summary.rounds) > 1:
        tables.append([*_rounds(summary.rounds, kinds)])
    if summary.channels:
        tables.append([*_channels(summary.channels)])
    if devices:
        tables.append([*_devices(summary)])
    for rows in tables:
        echo()
        print_table(rows)


def _lines(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "machine", summary.machine or "not named"
    yield "page size", str(summary.page_size)
    if summary.capabilities:
        yield "capabilities", " ".join(summary.capabilities)
    yield "size", f"{format_size(summary.size)} ({summary.size} bytes)"
    for section in summary.sections.values():
        pieces = "1 piece" if section.pieces == 1 else f"{section.pieces} pieces"
        rounds = _told_rounds(summary) if section.name == RAM_SECTION else ""
        unknown = "" if section.known else ", of an unknown kind"
        size = format_size(section.size)
        yield "section", f"{section.name}, {pieces}{rounds}, {size}{unknown}"
    if summary.commands:
        yield "commands", " ".join(CommandType(command).name for command in summary.commands)
    state = sum(device.size for device in summary.devices)
    yield "devices", f"{len(summary.devices)} sections, {format_size(state)}"
    if not summary.footers:
        yield "footers", "no"
    if summary.unsplit:
        told = "without footers, their description does not tell them apart"
        yield "unsplit", f"{summary.unsplit} bytes of devices: {told}"
    description = summary.description
    told = "no" if description is None else f"yes, {format_size(description)}"
    yield "description", told
    if summary.behind is not None:
        yield "behind", summary.behind.describe()


def _told_rounds(summary: Summary) -> str:
    count = len(summary.rounds)
    return f", {count} round{'s' if count > 1 else ''}" if count else ""


def _kinds(summary: Summary) -> list[int]:
    """Return the indices of the page kinds to print: plain, zero, and all others that occur."""
    total = [sum(column) for column in zip(*(b.pages.row() for b in summary.blocks), strict=True)]
    return [0, 1, *(kind for kind in range(2, len(PAGE_KINDS)) if total and total[kind])]


def _blocks(summary: Summary, kinds: Sequence[int]) -> Iterator[list[str]]:
    yield ["RAM block", "length", *(f"{PAGE_KINDS[kind]} pages" for kind in kinds)]
    for block in summary.blocks:
        absent = ["shared", "absent", *[""] * (len(kinds) - 2)]
        counts = absent if block.absent else _counts(block.pages, kinds)
        yield [block.name, format_size(block.length), *counts]


def _counts(pages: PageCount, kinds: Sequence[int]) -> list[str]:
    row = pages.row()
    return [str(row[kind]) for kind in kinds]


def _rounds(rounds: Sequence[PageCount], kinds: Sequence[int]) -> Iterator[list[str]]:
    yield ["round", *(f"{PAGE_KINDS[kind]} pages" for kind in kinds)]
    shown = [*range(len(rounds))]
    if len(rounds) > MOST_ROUNDS:
        shown = [*shown[: MOST_ROUNDS // 2], -1, *shown[-MOST_ROUNDS // 2 :]]
    for number in shown:
        left_out = ["...", *[""] * len(kinds)]
        yield left_out if number < 0 else [str(number), *_counts(rounds[number], kinds)]


def _channels(channels: Sequence[ChannelCount]) -> Iterator[list[str]]:
    yield ["channel", "packets", "sync points", "compression", "size", *_CHANNEL_KINDS, "file"]
    for channel in channels:
        counts = (channel.packets, channel.syncs, channel.compression, format_size(channel.size))
        pages = (channel.plain, channel.zero)
        yield [str(channel.channel), *map(str, counts), *map(str, pages), channel.file]


def _devices(summary: Summary) -> Iterator[list[str]]:
    yield ["id", "device", "instance", "version", "offset", "bytes"]
    for section in summary.devices:
        yield [
            str(section.section_id),
            section.name,
            str(section.instance_id),
            str(section.version),
            f"{section.offset:#x}",
            str(section.size),
        ]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print the rows as an aligned table, indented by one space."""
    for line in table(rows):
        echo(f" {line}")
