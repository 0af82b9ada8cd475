"""Defines the command `dump`, which shows the content of a stream.

An ordinary stream in a file is summarised by the module `outline`. That is faster than importing
`dump_whole`, which reads all other streams.
"""

from __future__ import annotations

import json
import mmap
import os

import click

from ...protocol.fast.outline import PAGE_SIZE, NotOrdinary, outline
from ..console.command import command
from ..console.options import json_option
from ..console.stream_options import (
    channel_option,
    length_option,
    max_device_state_option,
    offset_option,
    page_size_option,
)
from ..dump import overview
from ..dump.summary import Summary, from_outline


@command("dump guest.save", "dump guest.save --devices serial", "dump disk.qcow2#before --json")
@click.argument("stream", metavar="STREAM", required=False, type=click.Path())
@json_option
@click.option(
    "--pages", is_flag=True, help="list the runs of pages; with --json, one object per line"
)
@click.option(
    "--devices",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    help="list the device sections; or all fields of the device NAME (with or without its path; or"
    " NAME#INSTANCE) and their positions in the stream. --json prints the fields of all devices, or"
    " of that one",
)
@click.option("--xml", is_flag=True, help="print only the domain XML of a libvirt image")
@click.option(
    "--command",
    "qemu_command",
    is_flag=True,
    help="print a QEMU command line that loads STREAM, with comments on what it cannot know",
)
@channel_option
@offset_option
@length_option
@page_size_option
@max_device_state_option
def dump(
    stream: str | None,
    as_json: bool,
    pages: bool,
    devices: str | None,
    xml: bool,
    qemu_command: bool,
    offset: int,
    length: int | None,
    page_size: int | None,
    max_device_state: int | None,
    channels: tuple[str, ...],
) -> None:
    """Show what a stream holds: its machine, RAM, rounds and devices.

    STREAM is a file, - for standard input, or DISK.qcow2#SNAPSHOT for an internal snapshot; a qcow2
    image alone lists its snapshots. A file may be a stream, a libvirt save image or a mapped-ram
    file; it may be compressed by zstd, gzip, bzip2, xz, lzop, lz4 or lzma.
    """
    if stream is None:
        # click takes the argument after --devices as its NAME, even if it is the only argument.
        stream, devices = devices, ""
    if not stream:
        raise click.UsageError("Missing argument 'STREAM'.")
    if qemu_command:
        if pages or devices is not None or xml:
            raise click.UsageError("--command prints nothing else: no --pages, --devices, --xml")
        from ..dump.command import print_command  # noqa: PLC0415 - only where it is needed
        from ..sources.stream_events import How  # noqa: PLC0415

        how = How(page_size, max_device_state)
        print_command(stream, as_json=as_json, offset=offset, length=length, how=how)
        return
    fields = bool(devices) or (as_json and devices is not None)
    whole = pages or xml or fields or offset or channels or max_device_state or length is not None
    summary = None if whole else _outlined(stream, page_size)
    if summary is None:
        from ..dump.whole import dump_whole  # noqa: PLC0415 - only where it is needed
        from ..sources.stream_events import How  # noqa: PLC0415

        dump_whole(
            stream,
            as_json=as_json,
            pages=pages,
            devices=devices,
            xml=xml,
            offset=offset,
            length=length,
            how=How(page_size, max_device_state),
            channels=channels,
        )
    elif as_json:
        found = {"container": {"layers": [], "libvirt": None}, **summary.as_json()}
        click.echo(json.dumps(found, indent=2))
    else:
        overview.print_summary(summary, devices=devices is not None)


def _outlined(name: str, page_size: int | None) -> Summary | None:
    """Return the summary of an ordinary stream that is a file of its own, or None for any other."""
    if page_size not in (None, PAGE_SIZE) or name == "-" or not os.path.isfile(name):
        return None
    try:
        with open(name, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

        def forget(start: int, end: int) -> None:
            """Release the memory of bytes already read, because a large stream would fill the
            memory.
            """
            start -= start % mmap.PAGESIZE
            data.madvise(mmap.MADV_DONTNEED, start, end - start)

        return from_outline(outline(data, forget))
    except (OSError, ValueError, NotOrdinary):
        # The reader of all streams will report the error, if there is one.
        return None
