"""Defines the command `convert`: its options and exit status."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

import click

from ..console.failure import note
from ..console.outputs import check_output, note_missing
from ..console.sizes import (
    channel_option,
    length_option,
    max_device_state_option,
    offset_option,
    page_size_option,
)
from ..convert import streams as convert_command
from ..sources.containers import source_file
from ..sources.opening import note_guess, opened_stream
from ..sources.stream_events import How


@click.command()
@click.argument("stream", metavar="IN")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--to", "container", type=click.Choice(list(convert_command.CONTAINERS)), required=True
)
@click.option("--xml", type=click.File(encoding="utf-8"), help="libvirt: the domain's XML")
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
    offset: int,
    length: int | None,
    page_size: int | None,
    max_device_state: int | None,
    channels: tuple[str, ...],
) -> None:
    """Put the stream IN (as in dump) into another container, OUT (- for stdout).

    What comes out is for QEMU (-incoming; compressed: by way of zstd -dc, gzip -dc ...), a libvirt
    image for virsh restore. It keeps the domain's XML of a libvirt image. A mapped-ram file is for
    QEMU's capability of that name (9.0 on), and -incoming file:OUT; libvirt:sparse (libvirt 11 on)
    is such a file with libvirt's header, and was tried with QEMU alone. A multifd migration becomes
    a stream of one channel.
    """
    if xml is not None and not container.startswith("libvirt"):
        raise click.UsageError("--xml is for --to libvirt")
    check_output(source_file(stream), out)
    text = None if xml is None else _xml_text(xml)
    with opened_stream(stream, offset, channels=channels, length=length) as opened:
        how = How(page_size, max_device_state)
        done = convert_command.convert(opened, out, container, text, how)
    note_guess(stream, done.behind)
    if done.behind is not None:
        note(f"{click.format_filename(stream)}: {done.behind.describe()}, and not copied")
    lacks = f"{'the output' if str(out) == '-' else click.format_filename(out)} lacks them, too"
    missing = done.arrivals.missing()
    if note_missing(stream, (f"{pages.describe()}; {lacks}{pages.hint}" for pages in missing)):
        sys.exit(1)


def _xml_text(file: TextIO) -> str:
    try:
        return file.read()
    except ValueError:
        raise click.UsageError(f"--xml {file.name}: not UTF-8") from None
