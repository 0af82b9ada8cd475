"""The commands that look into streams: options in, exit status out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import click

from ..protocol.errors import StreamError
from . import containers, dump_container
from . import dump as dump_command
from . import verify as verify_command
from .containers import ChooseSnapshotError, Opened
from .dump_container import NoXmlError
from .failure import describe, fail
from .snapshots import Snapshot


@contextmanager
def _opened(
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
    except (StreamError, OSError, verify_command.VerifyError, NoXmlError) as error:
        fail(describe(error, name))


@click.command()
@click.argument("stream", metavar="STREAM")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
@click.option("--pages", is_flag=True, help="list the runs of pages; as JSON: an object a line")
@click.option("--devices", is_flag=True, help="list the device sections")
@click.option("--xml", is_flag=True, help="print the domain XML of a libvirt image, and no more")
def dump(stream: str, as_json: bool, pages: bool, devices: bool, xml: bool) -> None:
    """Show what STREAM holds: a file, - for standard input, or DISK.qcow2#SNAPSHOT.

    It may be a libvirt save image, and compressed (zstd, gzip, bzip2, xz). Of a qcow2 image
    without #SNAPSHOT, its snapshots are listed.
    """
    show = dump_command.print_pages_as_json if as_json else dump_command.print_pages
    list_snapshots = partial(dump_container.print_snapshots, as_json=as_json)
    with _opened(stream, list_snapshots) as opened:
        if xml:
            dump_container.print_xml(opened, as_json=as_json)
            return
        summary = dump_command.summarise(opened.stream, on_pages=show if pages else None)
    if as_json:
        found = {"container": opened.as_json(), **summary.as_json()}
        click.echo(json.dumps(found, indent=None if pages else 2))
    else:
        dump_container.print_container(opened)
        dump_command.print_summary(summary, devices=devices)


@click.command()
@click.argument("stream", metavar="STREAM")
@click.option("--ram", "ram", multiple=True, metavar="BLOCK=FILE", help="compare this RAM block")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
def verify(stream: str, ram: tuple[str, ...], as_json: bool) -> None:
    """Check that STREAM (as in dump) is whole, and rebuilds this RAM."""
    files = _ram_files(ram)
    with _opened(stream) as opened:
        try:
            compared = verify_command.verify(opened.stream, files)
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
