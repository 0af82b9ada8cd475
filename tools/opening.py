"""How a command opens the stream that its user names, and ends when something is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from ..guest.sizes import parse_size
from ..protocol.configuration import MAX_PAGE_BITS, MIN_PAGE_BITS
from ..protocol.errors import StreamError
from . import containers
from .containers import ChooseSnapshotError, Opened
from .failure import CommandError, describe, fail
from .snapshots import Snapshot

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


@contextmanager
def opened_stream(
    name: str, on_snapshots: Callable[[tuple[Snapshot, ...]], None] | None = None
) -> Iterator[Opened]:
    """What a user names as a stream; whatever is wrong with it or in it ends the command.

    `on_snapshots`: what to do instead where it is a qcow2 image, without a word of which snapshot.
    """
    try:
        with containers.open_stream(name) as opened:
            yield opened
    except ChooseSnapshotError as error:
        if on_snapshots is None:
            fail(describe(error, name))
        on_snapshots(error.snapshots)
        sys.exit(0)
    except BrokenPipeError:
        # Nobody reads our output any more, which is no news of the stream.
        raise
    except (StreamError, OSError, CommandError) as error:
        fail(describe(error, name))
