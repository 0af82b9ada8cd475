"""Defines the command `diff`: its options and exit status."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

import click

from ..compare import streams as diff_command
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
from ..sources.opening import note_guess
from ..sources.stream_events import How


@click.command(
    epilog=examples("diff guest.stream later.stream", "diff guest.stream later.stream --json")
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
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
    offset: int,
    length: int | None,
    other_offset: int | None,
    other_length: int | None,
    page_size: int | None,
    max_device_state: int | None,
    channels: tuple[str, ...],
    other_channels: tuple[str, ...],
) -> None:
    """Show what differs between the streams A and B (as in dump).

    RAM blocks and their pages, as both streams build them in the end; devices and their fields.
    The options --offset, --length and --channel are about A, those with --other- about B.
    Exit status: 0 equal, 1 different, or pages of either never arrived. The RAM of both is held in
    memory, zero pages apart.
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
    else:
        difference.print()
    if not (difference.equal and difference.whole):
        sys.exit(1)
