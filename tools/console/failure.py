"""How a command ends that failed: one line on standard error, exit status 1."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from ...protocol.errors import StreamError


class CommandError(Exception):
    """What is asked for cannot be done; one line."""


class ChannelError(StreamError):
    """What is wrong with a channel of a multifd migration; `file`: where that stands."""

    def __init__(self, file: str, error: StreamError) -> None:
        super().__init__(error.message, offset=error.offset, section=error.section)
        self.file = file


def note(message: str) -> None:
    """Write one line on standard error."""
    click.echo(f"vmferry: {' '.join(message.split())}", err=True)


def fail(message: str) -> NoReturn:
    """One line, exit status 1."""
    note(message)
    sys.exit(1)


def describe(error: Exception, name: str | None = None) -> str:
    """What went wrong, and with what; `name` where the error itself does not say."""
    what, message = name, str(error)
    if isinstance(error, ChannelError):
        what = error.file
    if isinstance(error, OSError) and error.strerror:
        what, message = error.filename or name, error.strerror
    return message if what is None else f"{click.format_filename(what)}: {message}"


@contextmanager
def named(what: Path | str) -> Iterator[None]:
    """An OSError from within says that it concerns this, as the user knows it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(what)) from None
