"""The commands that look into streams: options in, exit status out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import click

from ..protocol.errors import StreamError
from . import dump as dump_command
from . import verify as verify_command
from .failure import describe, fail


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """A stream file, or `-`; whatever is wrong with it or in it ends the command."""
    try:
        with click.open_file(path, "rb") as stream:
            yield cast(BinaryIO, stream)
    except BrokenPipeError:
        # Nobody reads our output any more, which is no news of the stream.
        raise
    except (StreamError, OSError, verify_command.VerifyError) as error:
        fail(describe(error, path))


@click.command()
@click.argument("stream", metavar="STREAM")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
@click.option("--pages", is_flag=True, help="list the runs of pages; as JSON: an object a line")
@click.option("--devices", is_flag=True, help="list the device sections")
def dump(stream: str, as_json: bool, pages: bool, devices: bool) -> None:
    """Show what STREAM (a file, or - for standard input) holds."""
    show = dump_command.print_pages_as_json if as_json else dump_command.print_pages
    with _opened(stream) as file:
        summary = dump_command.summarise(file, on_pages=show if pages else None)
    if as_json:
        click.echo(json.dumps(summary.as_json(), indent=None if pages else 2))
    else:
        dump_command.print_summary(summary, devices=devices)


@click.command()
@click.argument("stream", metavar="STREAM")
@click.option("--ram", "ram", multiple=True, metavar="BLOCK=FILE", help="compare this RAM block")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
def verify(stream: str, ram: tuple[str, ...], as_json: bool) -> None:
    """Check that STREAM (a file, or - for standard input) is whole, and rebuilds this RAM."""
    files = _ram_files(ram)
    with _opened(stream) as file:
        try:
            compared = verify_command.verify(file, files)
        except StreamError as error:
            if as_json:
                click.echo(json.dumps(verify_command.invalid_as_json(error), indent=2))
            raise
    equal = all(comparison.equal for comparison in compared)
    if as_json:
        click.echo(json.dumps(verify_command.valid_as_json(compared), indent=2))
    else:
        for comparison in compared:
            if not comparison.equal:
                click.echo(comparison.describe())
        if equal:
            valid = f"{click.format_filename(stream)}: valid"
            click.echo(valid + ("; RAM is equal" if files else ""))
    if not equal:
        sys.exit(1)


def _ram_files(pairs: Iterable[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for pair in pairs:
        # Names of blocks hold no "=", paths may.
        block, _, path = pair.partition("=")
        if not block or not path:
            raise click.UsageError(f"--ram {pair}: not BLOCK=FILE")
        if block in files:
            raise click.UsageError(f"--ram {pair}: this block comes twice")
        files[block] = path
    return files


STREAM_COMMANDS = (dump, verify)
