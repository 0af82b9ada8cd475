"""Sizes as options of a command: from text to bytes."""

from __future__ import annotations

import click

from ..guest.sizes import parse_size
from ..protocol.marks import MAX_PAGE_BITS, MIN_PAGE_BITS

_PAGE_SIZES = [1 << bits for bits in range(MIN_PAGE_BITS, MAX_PAGE_BITS + 1)]


def size_option(_context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Bytes, from `2G`: an option's callback."""
    try:
        return None if text is None else parse_size(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error), param=option) from None


def _page_size(context: click.Context, option: click.Parameter, text: str) -> int:
    size = size_option(context, option, text)
    if size not in _PAGE_SIZES:
        message = f"{text} is no power of 2 from {_PAGE_SIZES[0]} to {_PAGE_SIZES[-1]}"
        raise click.BadParameter(message, param=option)
    return size


page_size_option = click.option(
    "--page-size",
    default="4096",
    metavar="SIZE",
    callback=_page_size,
    help="of a page, where the stream does not say (default: 4096)",
)
