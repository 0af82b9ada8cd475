"""Implements `dump` for any stream in any container; the whole stream is read."""

from __future__ import annotations

import json
from functools import partial

from ..console.text import echo
from ..sources.opening import note_guess, opened_stream
from ..sources.stream_events import How
from . import container, overview, pieces
from .devices import devices_as_json, print_devices


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
    """Print the content of a stream, as the options of `vmferry dump` request."""
    show = pieces.print_pages_as_json if as_json else pieces.print_pages
    list_snapshots = partial(container.print_snapshots, as_json=as_json)
    with opened_stream(stream, offset, list_snapshots, channels, length) as opened:
        if xml:
            container.print_xml(opened, as_json=as_json)
            return
        on_pages = show if pages else None
        summary = pieces.summarise(opened.stream, how, on_pages, opened.channels)
        note_guess(stream, summary.behind)
        if as_json:
            found = {"container": opened.as_json(), **summary.as_json()}
            if devices is not None:
                found |= devices_as_json(summary, devices)
            echo(json.dumps(found, indent=None if pages else 2))
        elif devices:
            print_devices(summary, devices)
        else:
            container.print_container(opened)
            overview.print_summary(summary, devices=devices is not None)
