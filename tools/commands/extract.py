"""Defines the command `extract`: its options and exit status."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import click

from ...guest.sizes import format_size
from ..console.examples import examples
from ..console.failure import describe, fail
from ..console.outputs import check_output, note_missing
from ..console.sizes import (
    channel_option,
    length_option,
    max_device_state_option,
    offset_option,
    page_size_option,
    size_option,
)
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
        raise click.BadParameter(f"{text!r} is no address, such as 0x40000000")
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
        raise click.UsageError("an image is written at any place: -o needs a file")


@click.command(
    epilog=examples(
        "extract guest.save -o guest.core --format elf", "extract --partial damaged.stream -o ram"
    )
)
@click.argument("stream", metavar="STREAM")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="of the RAM; --all: a folder")
@click.option(
    "--block",
    "blocks",
    multiple=True,
    metavar="NAME[@ADDRESS]",
    help="this RAM block; may be repeated. With the address at which the guest sees it: beside the "
    "guest's memory (elf, lime)",
)
@click.option("--all", "everything", is_flag=True, help="every RAM block, each in a file")
@click.option("--format", "kind", type=click.Choice(FORMATS), default="raw")
@click.option("--devices", type=click.Path(path_type=Path), help="a folder for devices' state")
@click.option("--disks", type=click.Path(path_type=Path), help="a folder for disks (`block`)")
@click.option(
    "--max-ram-below-4g",
    "max_below_4g",
    callback=size_option,
    help="elf, lime: as the machine had",
)
@click.option("--machine", metavar="NAME", help="QEMU's name of the machine, if STREAM has none")
@click.option(
    "--arch",
    type=click.Choice(sorted(TARGETS)),
    metavar="NAME",
    help="the processor, as in qemu-system-NAME, if STREAM does not tell it",
)
@click.option(
    "--base",
    callback=_address_option,
    metavar="ADDRESS",
    help="elf, lime: where memory begins, if the machine is not known",
)
@channel_option
@click.option(
    "--partial",
    is_flag=True,
    help="of a damaged stream, keep what is sound, before and behind the damage",
)
@offset_option
@length_option
@page_size_option
@max_device_state_option
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
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
    channels: tuple[str, ...],
) -> None:
    """Take a guest's RAM out of STREAM (as in dump): an image, sparse where it is zero.

    The guest's memory is the block with the name that its machine gives it (pc.ram, mach-virt.ram
    ...), else the one that is neither firmware nor of a device. Of a guest with NUMA nodes, it is
    several: in the order of libvirt's names (ram-node0), or of the addresses that x-ignore-shared
    brings; where neither tells, name them by --block, node by node.

    ELF cores and LiME tell where the guest sees it, around the PCI hole, and have what was plugged
    in (DIMMs, virtio-mem) at its address; what has no certain address is left out, and named. An
    ELF core also has the registers of x86, Arm, RISC-V, PowerPC and s390x processors.

    Of disks (block migration) come raw images, sparse too. The stream has no word of a disk's
    size: an image ends with the last block of 1 MiB, which may reach behind the disk's end.
    """
    plain, placed = _split_blocks(blocks)
    _check_usage(output, devices, disks, everything and (bool(blocks) or kind != "raw"))
    if len({*plain, *dict(placed)}) < len(blocks):
        raise click.UsageError("--block: a block comes twice")
    if placed and kind == "raw":
        raise click.UsageError("--block NAME@ADDRESS is for --format elf or lime")
    check_output(source_file(stream), output)
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
    else:
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
