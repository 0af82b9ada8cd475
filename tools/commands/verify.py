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
from ..console.examples import examples
from ..console.sizes import (
    channel_option,
    length_option,
    max_device_state_option,
    offset_option,
    other_channel_option,
    other_length_option,
    other_offset_option,
    page_size_option,
)
from ..sources.opening import explain_damage, note_guess, opened_stream
from ..sources.stream_events import How


@click.command(
    epilog=examples(
        "verify guest.stream --ram pc.ram=saved/ram/000-pc.ram",
        "verify guest.stream --against later.stream",
    )
)
@click.argument("stream", metavar="STREAM")
@click.option("--ram", "ram", multiple=True, metavar="BLOCK=FILE", help="compare this RAM block")
@click.option("--against", metavar="STREAM", help="compare RAM with what another stream rebuilds")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
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
    offset: int,
    length: int | None,
    other_offset: int | None,
    other_length: int | None,
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
    else:
        for line in report.describe():
            click.echo(line)
        if report.good:
            click.echo(f"{click.format_filename(stream)}: {report.summary()}")
        for line in report.unchecked:
            click.echo(f"not checked: {line}")
    if not report.good:
        sys.exit(1)


def _refuse(**given: object) -> None:
    """Raise UsageError if one of the options is given that are about the stream of --against."""
    for name, value in given.items():
        if value not in (None, ()):
            raise click.UsageError(f"--other-{name} is for --against")


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
