"""Defines the command `diff`: its options and exit status."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

import click

from ..compare import streams as diff_command
from ..compare.opened import opened_guest
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
)
from ..sources.opening import note_guess
from ..sources.stream_events import How


@command("diff guest.stream later.stream", "diff guest.stream later.stream --json")
@click.argument("first", metavar="A", type=click.Path())
@click.argument("second", metavar="B", type=click.Path())
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
def diff(
    first: str,
    second: str,
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
    """Show how the guests in the streams A and B differ.

    Compares RAM blocks and their pages, as they are at the end of each stream, and devices with
    their fields. A and B may be whatever `dump` reads. --offset, --length and --channel are for A,
    and the options with --other- for B. Both guests are held in memory, except for pages that are
    zero. Exit status: 0 if they are equal, 1 if they differ or if pages never arrived.
    """
    how = How(page_size, max_device_state)
    with ExitStack() as stack:
        guests = [
            opened_guest(first, how, stack, offset=offset, length=length, channels=channels),
            opened_guest(
                second,
                how,
                stack,
                offset=other_offset or 0,
                length=other_length,
                channels=other_channels,
            ),
        ]
        difference = diff_command.compare_guests(*guests)
    for name, behind in zip((first, second), difference.behind, strict=True):
        note_guess(name, behind)
    if as_json:
        click.echo(json.dumps(difference.as_json(), indent=2))
    elif not quiet:
        difference.print()
    if not (difference.equal and difference.whole):
        sys.exit(1)
