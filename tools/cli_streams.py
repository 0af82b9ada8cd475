"""The commands that look into streams: options in, exit status out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial as bind
from pathlib import Path
from typing import TextIO

import click

from ..guest.sizes import format_size, parse_size
from ..protocol.errors import StreamError
from . import containers, dump_container
from . import convert as convert_command
from . import dump as dump_command
from . import extract as extract_command
from . import verify as verify_command
from .containers import ChooseSnapshotError, Opened
from .convert import ConvertError
from .dump_container import NoXmlError
from .extract import ExtractError, Report
from .failure import describe, fail
from .main_ram import LayoutError
from .snapshots import Snapshot

_FAILURES = (
    StreamError,
    OSError,
    verify_command.VerifyError,
    NoXmlError,
    ExtractError,
    LayoutError,
    ConvertError,
)
"""What ends a command with one line."""


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
    except _FAILURES as error:
        fail(describe(error, name))


def _size(_context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Bytes, from `2G`."""
    try:
        return None if text is None else parse_size(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error), param=option) from None


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
    list_snapshots = bind(dump_container.print_snapshots, as_json=as_json)
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


def _report_extracted(report: Report) -> None:
    for block in report.blocks:
        seen = "".join(
            f", {region.address:#x}-{region.address + region.length - 1:#x}"
            for region in block.regions or ()
        )
        click.echo(f"{block.block}  {format_size(block.length)}{seen}  {block.file}")
    if report.devices:
        click.echo(f"{report.devices} device sections")


@click.command()
@click.argument("stream", metavar="STREAM")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="of the RAM; --all: a folder")
@click.option("--block", metavar="NAME", help="this RAM block; default: the guest's memory")
@click.option("--all", "everything", is_flag=True, help="every RAM block, each in a file")
@click.option("--format", "kind", type=click.Choice(extract_command.FORMATS), default="raw")
@click.option("--devices", type=click.Path(path_type=Path), help="a folder for devices' state")
@click.option(
    "--max-ram-below-4g", "max_below_4g", callback=_size, help="elf, lime: as the machine had it"
)
@click.option("--partial", is_flag=True, help="of a damaged stream, keep what there is")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
def extract(
    stream: str,
    output: Path | None,
    block: str | None,
    everything: bool,
    kind: str,
    devices: Path | None,
    max_below_4g: int | None,
    partial: bool,
    as_json: bool,
) -> None:
    """Take a guest's RAM out of STREAM (as in dump): an image, sparse where it is zero.

    The guest's memory is the block with the name that its machine gives it (pc.ram, microvm.ram,
    mach-virt.ram), else the largest that is neither firmware nor of a device. ELF cores and LiME
    tell where the guest sees it, around the PCI hole.
    """
    if output is None and devices is None:
        raise click.UsageError("nothing to extract: give -o FILE, --devices FOLDER or both")
    if everything and (block is not None or kind != "raw"):
        raise click.UsageError("--all extracts raw images of every block")
    wanted = extract_command.Wanted(output, block, everything, kind, devices, max_below_4g, partial)
    with _opened(stream) as opened:
        report = extract_command.extract(opened.stream, wanted)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        _report_extracted(report)


@click.command()
@click.argument("stream", metavar="IN")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--to", "container", type=click.Choice(list(convert_command.CONTAINERS)), required=True
)
@click.option("--xml", type=click.File(encoding="utf-8"), help="libvirt: the domain's XML")
def convert(stream: str, out: Path, container: str, xml: TextIO | None) -> None:
    """Put the stream IN (as in dump) into another container, OUT (- for standard output).

    What comes out is for QEMU (-incoming; compressed: by way of zstd -dc or gzip -dc), a libvirt
    image for virsh restore. It keeps the domain's XML of a libvirt image.
    """
    if xml is not None and not container.startswith("libvirt"):
        raise click.UsageError("--xml is for --to libvirt")
    text = None if xml is None else _xml_text(xml)
    with _opened(stream) as opened:
        convert_command.convert(opened, out, container, text)


def _xml_text(file: TextIO) -> str:
    try:
        return file.read()
    except ValueError:
        raise click.UsageError(f"--xml {file.name}: not UTF-8") from None
