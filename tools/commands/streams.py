"""Defines the commands that verify and compare what streams build: options and exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack

import click

from ...protocol.errors import StreamError
from ..compare import streams as diff_command
from ..compare import verify as verify_command
from ..console.sizes import (
    channel_option,
    length_option,
    max_device_state_option,
    offset_option,
    page_size_option,
    two_offsets_option,
)
from ..rebuild.guest import RebuiltGuest, rebuild
from ..sources.opening import explain_damage, note_guess, opened_stream
from ..sources.stream_events import How, read_events

_other_channel_option = click.option(
    "--other-channel",
    "other_channels",
    multiple=True,
    metavar="FILE",
    type=click.Path(),
    help="as --channel, of the other stream",
)


@click.command()
@click.argument("stream", metavar="STREAM")
@click.option("--ram", "ram", multiple=True, metavar="BLOCK=FILE", help="compare this RAM block")
@click.option("--against", metavar="STREAM", help="compare RAM with what another stream rebuilds")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
@channel_option
@_other_channel_option
@offset_option
@length_option
@page_size_option
@max_device_state_option
def verify(
    stream: str,
    ram: tuple[str, ...],
    against: str | None,
    as_json: bool,
    offset: int,
    length: int | None,
    page_size: int | None,
    max_device_state: int | None,
    channels: tuple[str, ...],
    other_channels: tuple[str, ...],
) -> None:
    """Check that STREAM (as in dump) is whole, and rebuilds this RAM.

    Whole: every structure is in order, devices are as the description says, and each page of each
    RAM block arrives at least once, unless a virtio-mem device says that it is unplugged.
    """
    how, files = How(page_size, max_device_state), _ram_files(ram)
    if other_channels and against is None:
        raise click.UsageError("--other-channel is for --against")
    with ExitStack() as stack:
        other = None
        if against is not None:
            other = _rebuilt(against, 0, how, stack, other_channels)
        opened = stack.enter_context(
            opened_stream(stream, offset, channels=channels, length=length)
        )
        try:
            report = verify_command.verify(opened.stream, files, other, how, opened.channels)
        except StreamError as error:
            explain_damage(error, opened)
            if as_json:
                click.echo(json.dumps(verify_command.invalid_as_json(error), indent=2))
            raise
    note_guess(stream, report.behind)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        for line in report.describe():
            click.echo(line)
        if report.good:
            click.echo(f"{click.format_filename(stream)}: {report.summary()}")
        for line in report.unchecked:
            click.echo(f"not checked: {line}")
    if not report.good:
        sys.exit(1)


def _rebuilt(
    path: str, offset: int, how: How, stack: ExitStack, channels: tuple[str, ...]
) -> RebuiltGuest:
    """Return the guest that a stream builds, with all its RAM, which is valid until `stack` is
    closed.
    """
    # Large device state stays in the file of the stream, so keep that open.
    opened = stack.enter_context(opened_stream(path, offset, channels=channels))
    return rebuild(read_events(opened.stream, how, opened.channels), stack)


def _ram_files(pairs: Iterable[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for pair in pairs:
        # Block names do not contain "=", but paths may.
        block, _, path = pair.partition("=")
        if not block or not path:
            raise click.UsageError(f"--ram {pair}: not BLOCK=FILE")
        if block in files:
            raise click.UsageError(f"--ram {pair}: this block comes twice")
        files[block] = path
    return files


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
@channel_option
@_other_channel_option
@two_offsets_option
@page_size_option
@max_device_state_option
def diff(
    first: str,
    second: str,
    as_json: bool,
    offsets: tuple[int, int],
    page_size: int | None,
    max_device_state: int | None,
    channels: tuple[str, ...],
    other_channels: tuple[str, ...],
) -> None:
    """Tell what differs between the streams A and B (as in dump).

    RAM blocks and their pages, as both streams build them in the end; devices and their fields.
    Exit status: 0 equal, 1 different, or pages of either never arrived. The RAM of both is held in
    memory, zero pages apart.
    """
    how = How(page_size, max_device_state)
    with ExitStack() as stack:
        guests = [
            _rebuilt(first, offsets[0], how, stack, channels),
            _rebuilt(second, offsets[1], how, stack, other_channels),
        ]
        difference = diff_command.compare_guests(*guests)
    for name, behind in zip((first, second), difference.behind, strict=True):
        note_guess(name, behind)
    if as_json:
        click.echo(json.dumps(difference.as_json(), indent=2))
    else:
        difference.print()
    if not (difference.equal and difference.whole):
        sys.exit(1)
