"""The commands that look into streams: options in, exit status out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import partial

import click

from ..protocol.errors import StreamError
from . import dump as dump_command
from . import dump_container
from . import verify as verify_command
from .opening import opened_stream


@click.command()
@click.argument("stream", metavar="STREAM")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
@click.option("--pages", is_flag=True, help="list the runs of pages; as JSON: an object a line")
@click.option("--devices", is_flag=True, help="list the device sections")
@click.option("--xml", is_flag=True, help="print the domain XML of a libvirt image, and no more")
def dump(stream: str, as_json: bool, pages: bool, devices: bool, xml: bool) -> None:
    """Show what STREAM holds: a file, - for standard input, or DISK.qcow2#SNAPSHOT.

    It may be a libvirt save image, and compressed (zstd, gzip, bzip2, xz, lzop). Of a qcow2 image
    without #SNAPSHOT, its snapshots are listed.
    """
    show = dump_command.print_pages_as_json if as_json else dump_command.print_pages
    list_snapshots = partial(dump_container.print_snapshots, as_json=as_json)
    with opened_stream(stream, list_snapshots) as opened:
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
    with opened_stream(stream) as opened:
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
