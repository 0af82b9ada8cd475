"""Checks the output of a command before it is written, and reports what it lacks afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from .failure import note

force_option = click.option(
    "-f", "--force", is_flag=True, help="overwrite a file that exists already"
)


def check_output(source: int | str, out: Path | None, *, force: bool) -> None:
    """Raise UsageError if the output would replace `source`, a descriptor or the path of a file, or
    fill a terminal with binary data; or, without `force`, if it would replace any file.
    """
    _check_terminal(out)
    _check_source(source, out)
    if out is not None and not force and out.is_file() and out.stat().st_size:
        name = click.format_filename(str(out))
        raise click.UsageError(f"{name} exists already: name another one, or overwrite it with -f")


def _check_terminal(out: Path | None) -> None:
    if str(out) == "-" and sys.stdout.isatty():
        raise click.UsageError("a stream is no text for a terminal: name a file, or pipe it on")


def _check_source(source: int | str, out: Path | None) -> None:
    try:
        same = out is not None and os.path.samestat(os.stat(source), os.stat(out))
    except OSError:
        # A missing file is not an error here.
        return
    if same:
        raise click.UsageError(f"{click.format_filename(str(out))} is the stream itself")


def note_missing(stream: str, lines: Iterable[str]) -> bool:
    """Print these lines to standard error, one for each block with missing pages; return whether
    there are any.
    """
    told = list(lines)
    for line in told:
        note(f"{click.format_filename(stream)}: {line}")
    return bool(told)
