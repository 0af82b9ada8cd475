"""Ends a failed command: one line on standard error, exit status 1."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from ...protocol.errors import StreamError, VmferryError


class CommandError(VmferryError):
    """Raised if the requested operation is not possible; the message is one line."""


class ChannelError(StreamError):
    """An error in a channel of a multifd migration; `file` is the file with the channel."""

    def __init__(self, file: str, error: StreamError) -> None:
        super().__init__(error.message, offset=error.offset, section=error.section)
        self.file = file


def note(message: str) -> None:
    """Print one line to standard error."""
    click.echo(f"vmferry: {' '.join(message.split())}", err=True)


def fail(message: str) -> NoReturn:
    """Print one line to standard error, and exit with status 1."""
    note(message)
    sys.exit(1)


def describe(error: Exception, name: str | None = None) -> str:
    """Return a message with the name of the file; `name` is used if the error itself has none."""
    what, message = name, str(error)
    if isinstance(error, ChannelError):
        what = error.file
    if isinstance(error, OSError) and error.strerror:
        what, message = error.filename or name, error.strerror
    return message if what is None else f"{click.format_filename(what)}: {message}"


@contextmanager
def named(what: Path | str) -> Iterator[None]:
    """Raise an OSError from inside again with the file name that the user knows."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(what)) from None
