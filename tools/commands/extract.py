"""Defines the command `extract`: its options and exit status."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import click

from ...guest.sizes import format_size
from ..console.command import command
from ..console.failure import describe, fail
from ..console.logs import quiet_option
from ..console.options import json_option
from ..console.outputs import check_output, force_option, note_missing
from ..console.stream_options import (
    channel_option,
    length_option,
    max_device_state_option,
    offset_option,
    page_size_option,
    stream_argument,
)
from ..console.types import Size
from ..extract import guest as extract_command
from ..extract.guest import Report
from ..extract.memory_file import FORMATS
from ..machines.table import TARGETS
from ..rebuild.guest import absent_message
from ..sources.containers import source_file
from ..sources.domain import domain_of
from ..sources.opening import note_guess, opened_stream
from ..sources.stream_events import How

_PLACED = re.compile(r"(.+)@0x([0-9a-fA-F]+)")
"""A RAM block and its guest address, as NAME@ADDRESS."""


def _report_extracted(report: Report) -> None:
    for block in report.blocks:
        seen = "".join(
            f", {region.address:#x}-{region.address + region.length - 1:#x}"
            for region in block.regions or ()
        )
        click.echo(f"{block.block}  {format_size(block.length)}{seen}  {block.file}")
    for left in report.left_out:
        click.echo(left.why)
    for line in report.notices:
        click.echo(line)
    for name in report.absent:
        click.echo(absent_message(name))
    for disk in report.disks:
        click.echo(f"{disk.device}  {format_size(disk.size)}, up to its last block  {disk.file}")
    if report.processors:
        click.echo(f"registers of {report.processors} processors")
    if report.devices:
        click.echo(f"{report.devices} device sections")
    if report.behind is not None:
        click.echo(report.behind.describe())
    for line in () if report.survival is None else report.survival.describe():
        click.echo(line)


def _address_option(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """Return the number in C notation (decimal or 0x...); this is the callback of an option."""
    if text is None:
        return None
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise click.BadParameter(f"{text!r} is not an address such as 0x40000000")
    return value


def _split_blocks(
    given: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """Return the blocks without an address, and those with one; block names may contain an @."""
    matches = [(text, _PLACED.fullmatch(text)) for text in given]
    plain = tuple(text for text, match in matches if match is None)
    found = [(match[1], int(match[2], 16)) for _, match in matches if match is not None]
    if any(address >= 1 << 64 for _, address in found):
        raise click.UsageError("--block: an address has 64 bits at most")
    return plain, tuple(found)


def _check_usage(
    output: Path | None, devices: Path | None, disks: Path | None, several: bool
) -> None:
    """Raise UsageError if there is no output, or if options contradict each other (`several`)."""
    if output is None and devices is None and disks is None:
        raise click.UsageError("nothing to extract: give -o FILE, --devices or --disks FOLDER")
    if several:
        raise click.UsageError("--all extracts raw images of every block")
    if str(output) == "-":
        raise click.UsageError("-o needs a file: images are not written from start to end")


@command("extract guest.save -o guest.core --format elf", "extract --partial damaged.stream -o ram")
@stream_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="file for the guest's RAM; with --all, a folder for all RAM blocks",
)
@click.option(
    "--block",
    "blocks",
    multiple=True,
    metavar="NAME[@ADDRESS]",
    help="extract this RAM block; may be repeated. With the address at which the guest sees it (elf"
    " and lime only), it is added to the guest's memory",
)
@click.option("--all", "everything", is_flag=True, help="extract every RAM block into its own file")
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="raw",
    show_default=True,
    help="format of the memory image",
)
@click.option(
    "--devices", type=click.Path(path_type=Path), help="folder for the state of the devices"
)
@click.option(
    "--disks", type=click.Path(path_type=Path), help="folder for the disks of a block migration"
)
@click.option(
    "--max-ram-below-4g",
    "max_below_4g",
    type=Size(),
    help="the machine's option of this name, if it had one (elf and lime only)",
)
@click.option(
    "--machine", metavar="NAME", help="QEMU's name of the machine type, if STREAM does not have it"
)
@click.option(
    "--arch",
    type=click.Choice(sorted(TARGETS)),
    metavar="NAME",
    help="the processor, as in qemu-system-NAME, if STREAM does not have it",
)
@click.option(
    "--base",
    callback=_address_option,
    metavar="ADDRESS",
    help="guest address where memory begins, if the machine is not known (elf and lime only)",
)
@channel_option
@click.option(
    "--partial",
    is_flag=True,
    help="if the stream is damaged, keep what is sound before and after the damage",
)
@offset_option
@length_option
@page_size_option
@max_device_state_option
@json_option
@force_option
@quiet_option
def extract(
    stream: str,
    output: Path | None,
    blocks: tuple[str, ...],
    everything: bool,
    kind: str,
    devices: Path | None,
    disks: Path | None,
    max_below_4g: int | None,
    machine: str | None,
    arch: str | None,
    base: int | None,
    partial: bool,
    offset: int,
    length: int | None,
    page_size: int | None,
    max_device_state: int | None,
    as_json: bool,
    force: bool,
    quiet: bool,
    channels: tuple[str, ...],
) -> None:
    """Extract a guest's RAM, devices and disks from a stream.

    STREAM may be whatever `dump` reads. RAM becomes a sparse file.

    The guest's RAM is the block with the name that its machine gives it (pc.ram, mach-virt.ram and
    so on), or else the only one that belongs neither to firmware nor to a device. A guest with NUMA
    nodes has several blocks, in the order of libvirt's names (ram-node0) or of the addresses that
    x-ignore-shared adds to the stream. If neither is there, name the blocks by --block, in order.

    ELF cores and LiME files contain guest addresses, with the PCI hole left out, and also what was
    plugged in (DIMMs, virtio-mem). Memory whose address is uncertain is left out, with a message.
    ELF cores have the registers of x86, Arm, RISC-V, PowerPC and s390x processors, too.

    The disks of a block migration become sparse raw images. The stream does not contain a disk's
    size, so an image ends with the last block of 1 MiB, which may extend beyond the disk's end.
    """
    plain, placed = _split_blocks(blocks)
    _check_usage(output, devices, disks, everything and (bool(blocks) or kind != "raw"))
    if len({*plain, *dict(placed)}) < len(blocks):
        raise click.UsageError("--block: the same block is given twice")
    if placed and kind == "raw":
        raise click.UsageError("--block NAME@ADDRESS is for --format elf or lime")
    check_output(source_file(stream), output, force=force)
    with opened_stream(stream, offset, channels=channels, length=length) as opened:
        wanted = extract_command.Wanted(
            out=output,
            blocks=plain,
            placed=placed,
            machine=machine,
            arch=arch,
            base=base,
            everything=everything,
            format=kind,
            devices=devices,
            max_below_4g=max_below_4g,
            partial=partial,
            disks=disks,
            how=How(page_size, max_device_state),
            domain=domain_of(opened.image),
        )
        report = extract_command.extract(opened.stream, wanted, opened.channels)
    note_guess(stream, report.behind)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    elif not quiet:
        _report_extracted(report)
    if report.survival is not None:
        if report.damage or not report.survival.whole:
            wrong = report.damage or "pages never arrive, or may be wrong"
            fail(f"{click.format_filename(stream)}: {wrong}; {report.survival.summary()}")
        return
    files = {block.block: click.format_filename(block.file) for block in report.blocks}
    lines = (
        f"{pages.describe()}; {files[pages.block]} has zeros in their place{pages.hint}"
        for pages in report.missing
    )
    missing = note_missing(stream, lines)
    if report.damage is not None:
        fail(f"{describe(report.damage, stream)}; what arrived before this was kept")
    if missing:
        sys.exit(1)
