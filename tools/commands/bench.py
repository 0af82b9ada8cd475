"""Defines the command `bench`: its options and exit status."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from ...guest.errors import GuestError, MigrationError
from ...transport import settings
from ..console.command import command
from ..console.failure import describe, fail
from ..console.setting_options import setting_option
from ..console.types import Size
from ..measure.bench.cases import CONTENTS, DESTINATIONS, BenchError, Case, Variant, default_hot
from ..measure.bench.comparison import compare
from ..measure.bench.plot import check_plot, draw
from ..measure.bench.table import print_report

_QUICK_SIZE = 256 << 20
_QUICK = (
    ("random", None, "plain"),
    ("random", 20 << 20, "plain"),
    ("random", 20 << 20, "xbzrle"),
    ("text", 20 << 20, "zstd"),
)
"""Content, writes and variant of what `--quick` measures."""


class _Rate(Size):
    """A number of bytes per second, or None for `still`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the rate. Raises BadParameter."""
        return None if value in (None, "still") else super().convert(value, param, ctx)


@command(
    "bench --quick --qemu qemu-system-x86_64",
    "bench --size 8G --writes 100M --variant plain --variant xbzrle --plot bench.svg",
    "bench --writes still --content zero --destination warm --json",
)
@click.option(
    "--size",
    "sizes",
    type=Size(),
    multiple=True,
    default=("2G",),
    show_default=True,
    help="RAM of the guest; repeat this option, or those after --runs, for more cases",
)
@click.option(
    "--runs",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="number of migrations of each case by each program, of which the median counts"
    " (default: 5; with --quick, 1)",
)
@click.option(
    "--writes",
    multiple=True,
    type=_Rate(),
    metavar="SIZE|still",
    default=("20M",),
    show_default=True,
    help="number of bytes that the guest writes per second; still: the guest is paused",
)
@click.option(
    "--content",
    "contents",
    multiple=True,
    type=click.Choice(CONTENTS),
    default=("random",),
    show_default=True,
    help="what the guest's RAM holds",
)
@click.option(
    "--destination",
    "destinations",
    multiple=True,
    type=click.Choice(DESTINATIONS),
    default=("cold",),
    show_default=True,
    help="cold: the destination's memory is allocated as pages arrive; warm: before that",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    default=("plain",),
    show_default=True,
    metavar="METHOD",
    help="how pages are encoded: plain or xbzrle; zstd[:LEVEL] or adaptive, which compress the link"
    " (in QEMU, multifd-zstd); multifd or multifd-zstd[:LEVEL], over two channels",
)
@click.option(
    "--hot", type=Size(), help="memory that the guest writes over and over (default: 64M)"
)
@setting_option(settings.MAX_BANDWIDTH)
@click.option("--qemu", metavar="COMMAND", help="command line of a QEMU to compare with")
@click.option("--quick", is_flag=True, help="measure four cases of 256 MiB, within a minute")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="also draw the results, into a .png or .svg file",
)
@click.option(
    "--json", "as_json", is_flag=True, help="print medians and single runs as JSON, for programs"
)
def bench(
    sizes: tuple[int, ...],
    runs: int | None,
    writes: tuple[int | None, ...],
    contents: tuple[str, ...],
    destinations: tuple[str, ...],
    variants: tuple[str, ...],
    hot: int | None,
    max_bandwidth: int,
    qemu: str | None,
    quick: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure migrations over loopback TCP, in turns with those of a QEMU."""
    rows = [
        (ram, content, each, destination, variant)
        for ram in sizes
        for each in writes
        for content in contents
        for destination in destinations
        for variant in variants
    ]
    if quick:
        rows = [(_QUICK_SIZE, content, each, "cold", name) for content, each, name in _QUICK]
    try:
        cases = [
            Case(
                *(ram, content, each, destination, Variant(name)),
                hot=default_hot(ram) if hot is None else hot,
                max_bandwidth=max_bandwidth,
            )
            for ram, content, each, destination, name in rows
        ]
        if plot is not None:
            check_plot(plot)
        report = compare(cases, runs or (1 if quick else 5), qemu, partial(click.echo, err=True))
        if plot is not None:
            draw(report, plot)
    except (GuestError, MigrationError, BenchError, OSError) as error:
        fail(describe(error))
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        print_report(report)
