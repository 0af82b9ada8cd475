"""`dump` of any stream, in whatever it stands: all of it is read."""

from __future__ import annotations

import json
from functools import partial

import click

from . import dump as dump_command
from . import dump_container, dump_devices, dump_page
from .opening import note_guess, opened_stream
from .stream_events import How


def dump_whole(
    stream: str,
    *,
    as_json: bool,
    pages: bool,
    devices: str | None,
    xml: bool,
    offset: int,
    length: int | None,
    how: How,
    channels: tuple[str, ...],
) -> None:
    """See `cli_dump.dump`."""
    show = dump_command.print_pages_as_json if as_json else dump_command.print_pages
    list_snapshots = partial(dump_container.print_snapshots, as_json=as_json)
    with opened_stream(stream, offset, list_snapshots, channels, length) as opened:
        if xml:
            dump_container.print_xml(opened, as_json=as_json)
            return
        on_pages = show if pages else None
        summary = dump_command.summarise(opened.stream, how, on_pages, opened.channels)
        note_guess(stream, summary.behind)
        if as_json:
            found = {"container": opened.as_json(), **summary.as_json()}
            if devices is not None:
                found |= dump_devices.devices_as_json(summary, devices)
            click.echo(json.dumps(found, indent=None if pages else 2))
        elif devices:
            dump_devices.print_devices(summary, devices)
        else:
            dump_container.print_container(opened)
            dump_page.print_summary(summary, devices=devices is not None)
