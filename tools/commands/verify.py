"""Defines the command `verify`: its options and exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack

import click

from ...protocol.errors import StreamError
from ..compare import verify as verify_command
from ..compare.opened import opened_guest
from ..compare.verify import Report
from ..console.command import command
from ..console.logs import quiet_option
from ..console.options import json_option
from ..console.stream_options import (
    channel_option,
    length_option,
    max_device_state_option,
    offset_option,
    other_channel_option,
    other_length_option,
    other_offset_option,
    page_size_option,
    stream_argument,
)
from ..sources.opening import explain_damage, note_guess, opened_stream
from ..sources.stream_events import How


@command(
    "verify guest.stream --ram pc.ram=saved/ram/000-pc.ram",
    "verify guest.stream --against later.stream",
)
@stream_argument
@click.option(
    "--ram",
    "ram",
    multiple=True,
    metavar="BLOCK=FILE",
    help="compare this RAM block with a raw image; repeat for more",
)
@click.option(
    "--against",
    metavar="STREAM",
    type=click.Path(),
    help="compare RAM with that of another stream",
)
@json_option
@quiet_option
@channel_option
@other_channel_option
@offset_option
@length_option
@other_offset_option
@other_length_option
@page_size_option
@max_device_state_option
def verify(
    stream: str,
    ram: tuple[str, ...],
    against: str | None,
    as_json: bool,
    quiet: bool,
    offset: int,
    length: int | None,
    other_offset: int | None,
    other_length: int | None,
    page_size: int | None,
    max_device_state: int | None,
    channels: tuple[str, ...],
    other_channels: tuple[str, ...],
) -> None:
    """Check that a stream is complete and valid, and compare its RAM.

    STREAM may be whatever `dump` reads. It is complete and valid if every structure is in order, if
    the devices agree with the description in the stream, and if each page of each RAM block arrives
    at least once, apart from those that a virtio-mem device has unplugged.
    """
    how, files = How(page_size, max_device_state), _ram_files(ram)
    if against is None:
        _refuse(channel=other_channels, offset=other_offset, length=other_length)
    with ExitStack() as stack:
        other = None
        if against is not None:
            other = opened_guest(
                against,
                how,
                stack,
                offset=other_offset or 0,
                length=other_length,
                channels=other_channels,
            )
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
    elif not quiet:
        _print(stream, report)
    if not report.good:
        sys.exit(1)


def _refuse(**given: object) -> None:
    """Raise UsageError if one of the options is given that are about the stream of --against."""
    for name, value in given.items():
        if value not in (None, ()):
            raise click.UsageError(f"--other-{name} is for --against")


def _print(stream: str, report: Report) -> None:
    for line in report.describe():
        click.echo(line)
    if report.good:
        click.echo(f"{click.format_filename(stream)}: {report.summary()}")
    for line in report.unchecked:
        click.echo(f"not checked: {line}")


def _ram_files(pairs: Iterable[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for pair in pairs:
        # Block names do not contain "=", but paths may.
        block, _, path = pair.partition("=")
        if not block or not path:
            raise click.UsageError(f"--ram {pair}: write BLOCK=FILE")
        if block in files:
            raise click.UsageError(f"--ram {pair}: the same block is given twice")
        files[block] = path
    return files
