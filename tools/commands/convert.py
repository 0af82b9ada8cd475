"""Defines the command `convert`: its options and exit status."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO, TextIO

import click

from ...guest.sizes import format_size
from ..console.command import command
from ..console.failure import note
from ..console.logs import quiet_option
from ..console.outputs import check_output, force_option, note_missing
from ..console.stream_options import (
    channel_option,
    length_option,
    max_device_state_option,
    offset_option,
    page_size_option,
)
from ..console.transfer import transfer_bar
from ..convert import streams as convert_command
from ..convert.streams import Converted
from ..sources.containers import source_file
from ..sources.opening import note_guess, opened_stream
from ..sources.stream_events import How


@command(
    "convert guest.save guest.stream --to plain",
    "convert guest.stream guest.save --to libvirt:gzip --xml guest.xml",
)
@click.argument("stream", metavar="IN", type=click.Path())
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "container",
    type=click.Choice(list(convert_command.CONTAINERS)),
    metavar="CONTAINER",
    required=True,
    help=f"container of the output: {', '.join(convert_command.CONTAINERS)}",
)
@click.option(
    "--xml",
    type=click.File(encoding="utf-8"),
    help="file with the domain XML for a libvirt image (default: that of IN, if it has one)",
)
@force_option
@quiet_option
@channel_option
@offset_option
@length_option
@page_size_option
@max_device_state_option
def convert(
    stream: str,
    out: Path,
    container: str,
    xml: TextIO | None,
    force: bool,
    quiet: bool,
    offset: int,
    length: int | None,
    page_size: int | None,
    max_device_state: int | None,
    channels: tuple[str, ...],
) -> None:
    """Write the stream IN into another container, OUT (- for standard output).

    IN may be whatever `dump` reads. A multifd migration becomes a stream with one channel.

    QEMU loads a plain stream by -incoming, and a compressed one by way of `zstd -dc`, `gzip -dc`
    and so on. `virsh restore` loads a libvirt image, which keeps the domain XML of IN (libvirt 9
    cannot load libvirt:zstd). QEMU 9.0 and newer load mapped-ram by -incoming file:OUT, with the
    capability of that name. libvirt:sparse is a mapped-ram file with the header of libvirt 11 and
    newer; only QEMU has been tried with it.
    """
    if xml is not None and not container.startswith("libvirt"):
        raise click.UsageError("--xml is for --to libvirt")
    check_output(source_file(stream), out, force=force)
    text = None if xml is None else _xml_text(xml)
    with opened_stream(stream, offset, channels=channels, length=length) as opened:
        how = How(page_size, max_device_state)
        with transfer_bar("converting", _expected(opened.stream), quiet=quiet) as show:
            done = convert_command.convert(
                opened, out, container, xml=text, how=how, on_progress=show
            )
    if not quiet and str(out) != "-":
        click.echo(_sizes(out, done))
    note_guess(stream, done.behind)
    if done.behind is not None:
        note(f"{click.format_filename(stream)}: {done.behind.describe()}, and not copied")
    lacks = f"{'the output' if str(out) == '-' else click.format_filename(out)} lacks them, too"
    missing = done.arrivals.missing()
    if note_missing(stream, (f"{pages.describe()}; {lacks}{pages.hint}" for pages in missing)):
        sys.exit(1)


def _expected(stream: BinaryIO) -> int | None:
    """Return the bytes up to the end of a seekable stream, or None if only its end will show."""
    if not stream.seekable():
        return None
    here = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    stream.seek(here)
    return end - here


def _sizes(out: Path, done: Converted) -> str:
    """Return the line with the sizes of the stream and of the output."""
    line = f"{click.format_filename(out)}: {format_size(done.written)}"
    if done.written != done.size and done.size:
        line += f" for {format_size(done.size)} of stream, {done.written / done.size:.1%}"
    return line


def _xml_text(file: TextIO) -> str:
    try:
        return file.read()
    except ValueError:
        raise click.UsageError(f"--xml {file.name}: not UTF-8") from None
