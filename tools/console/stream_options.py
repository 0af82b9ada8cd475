"""Defines the options of commands that read streams: which part of a file, which channels."""

from __future__ import annotations

from typing import Any

import click

from ...protocol.wire.marks import PAGE_SIZES
from .types import Size


class _PageSize(Size):
    """The size of a guest's pages."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes. Raises BadParameter if no guest has such pages."""
        size = super().convert(value, param, ctx)
        if size not in PAGE_SIZES:
            message = f"{value} is not a power of 2 from {PAGE_SIZES[0]} to {PAGE_SIZES[-1]}"
            self.fail(message, param, ctx)
        return size


stream_argument = click.argument("stream", metavar="STREAM", type=click.Path())
offset_option = click.option(
    "--offset",
    default="0",
    type=Size(),
    help="position in the file where the stream begins; messages count from there",
)
length_option = click.option(
    "--length",
    type=Size(),
    help="the stream ends within this many bytes from --offset on; what follows them is ignored"
    " (default: the rest of the file; most streams mark their end)",
)
other_offset_option = click.option(
    "--other-offset", type=Size(), help="as --offset, but for the other stream"
)
other_length_option = click.option(
    "--other-length", type=Size(), help="as --length, but for the other stream"
)
channel_option = click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="FILE",
    type=click.Path(),
    help="file with a further channel of a captured multifd migration, of which STREAM is the main"
    " channel; repeat for each channel",
)
other_channel_option = click.option(
    "--other-channel",
    "other_channels",
    multiple=True,
    metavar="FILE",
    type=click.Path(),
    help="as --channel, but for the other stream",
)
page_size_option = click.option(
    "--page-size",
    type=_PageSize(),
    help="size of the guest's pages, if the stream does not contain it (default: as the description"
    " in the stream says, or else 4096)",
)
max_device_state_option = click.option(
    "--max-device-state",
    type=Size(),
    help="refuse a stream with more device state (default: no limit for a file; 1G for a pipe or"
    " compressed data, where a temporary file in TMPDIR holds it until the end is found)",
)
