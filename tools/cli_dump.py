"""The command that shows what a stream holds: options in, exit status out."""

from __future__ import annotations

import json
from functools import partial

import click

from . import dump as dump_command
from . import dump_container, dump_devices, dump_page
from .opening import opened_stream, page_size_option


@click.command()
@click.argument("stream", metavar="STREAM", required=False)
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
@click.option("--pages", is_flag=True, help="list the runs of pages; as JSON: an object a line")
@click.option(
    "--devices",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    help="list the device sections; or all fields of the device NAME (NAME#INSTANCE, if there are "
    "several), with their places in the stream; with --json: the fields of all, or of that one",
)
@click.option("--xml", is_flag=True, help="print the domain XML of a libvirt image, and no more")
@page_size_option
def dump(
    stream: str | None, as_json: bool, pages: bool, devices: str | None, xml: bool, page_size: int
) -> None:
    """Show what STREAM holds: a file, - for standard input, or DISK.qcow2#SNAPSHOT.

    It may be a libvirt save image, and compressed (zstd, gzip, bzip2, xz, lzop). Of a qcow2 image
    without #SNAPSHOT, its snapshots are listed.
    """
    if stream is None:
        # What stands behind --devices is taken for its NAME, even if it is all that there is.
        stream, devices = devices, ""
    if not stream:
        raise click.UsageError("Missing argument 'STREAM'.")
    show = dump_command.print_pages_as_json if as_json else dump_command.print_pages
    list_snapshots = partial(dump_container.print_snapshots, as_json=as_json)
    with opened_stream(stream, list_snapshots) as opened:
        if xml:
            dump_container.print_xml(opened, as_json=as_json)
            return
        summary = dump_command.summarise(opened.stream, page_size, show if pages else None)
        if as_json:
            found = {"container": opened.as_json(), **summary.as_json()}
            if devices is not None:
                found |= dump_devices.devices_as_json(summary, devices)
            click.echo(json.dumps(found, indent=None if pages else 2))
        elif devices:
            dump_devices.print_devices(summary, devices)
        else:
            dump_container.print_container(opened)
            dump_page.print_summary(summary, devices=devices is not None)
