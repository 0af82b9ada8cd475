"""Defines the options of commands that read streams, and converts sizes from text to bytes."""

from __future__ import annotations

import click

from ...guest.sizes import MAX_SIZE, parse_size
from ...protocol.wire.marks import PAGE_SIZES


def size(text: str) -> int:
    """Return the bytes in a size such as `512M`. Raises BadParameter."""
    try:
        value = parse_size(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error)) from None
    if value >= 1 << 63:
        raise click.BadParameter(f"{text!r} is too much")
    return value


def size_option(_context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Return the bytes in a size such as `2G`; this is the callback of an option."""
    try:
        return None if text is None else parse_size(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error), param=option) from None


def _place(option: click.Parameter, text: str) -> int:
    """Return the bytes in a size or offset such as `2G` or `0x1000`. Raises BadParameter."""
    try:
        return int(text, 16) if text.lower().startswith("0x") else parse_size(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error), param=option) from None


def _offset(_context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    place = _place(option, text)
    if place > MAX_SIZE:
        raise click.BadParameter(f"{text!r} is more than a file can hold", param=option)
    return place


def _length(_context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    return None if text is None else _place(option, text)


def _page_size(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    size = size_option(context, option, text)
    if size is not None and size not in PAGE_SIZES:
        message = f"{text} is no power of 2 from {PAGE_SIZES[0]} to {PAGE_SIZES[-1]}"
        raise click.BadParameter(message, param=option)
    return size


offset_option = click.option(
    "--offset",
    default="0",
    metavar="SIZE",
    callback=_offset,
    help="where in the file the stream begins: 4096, 1M, 0x1000; messages count from there",
)
length_option = click.option(
    "--length",
    metavar="SIZE",
    callback=_length,
    help="bytes of the file from --offset on in which the stream ends: what stands behind them is "
    "not looked at (default: all; most streams tell their end)",
)
other_offset_option = click.option(
    "--other-offset",
    metavar="SIZE",
    callback=_offset,
    help="as --offset, of the other stream",
)
other_length_option = click.option(
    "--other-length",
    metavar="SIZE",
    callback=_length,
    help="as --length, of the other stream",
)
channel_option = click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="FILE",
    type=click.Path(),
    help="a channel of a captured multifd migration, whose main channel STREAM is; again for each",
)
other_channel_option = click.option(
    "--other-channel",
    "other_channels",
    multiple=True,
    metavar="FILE",
    type=click.Path(),
    help="as --channel, of the other stream",
)
page_size_option = click.option(
    "--page-size",
    metavar="SIZE",
    callback=_page_size,
    help="of a page, where the stream does not say (default: as its description says, or 4096)",
)
max_device_state_option = click.option(
    "--max-device-state",
    metavar="SIZE",
    callback=size_option,
    help="refuse more state of devices than this (default: any in a file; 1G from a pipe or out of "
    "compressed data, which is kept in a temporary file, see TMPDIR, until the end is found)",
)
