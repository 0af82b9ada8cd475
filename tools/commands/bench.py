"""Defines the command `bench`: its options and exit status."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from ...guest.errors import GuestError, MigrationError
from ...transport import settings
from ..console.examples import examples
from ..console.failure import describe, fail
from ..console.setting_options import setting_option
from ..console.sizes import size
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


def rate(text: str) -> int | str:
    """Return `still`, or the bytes a second of a rate such as `20M`. Raises BadParameter."""
    return text if text == "still" else size(text)


@click.command(
    epilog=examples(
        "bench --quick --qemu qemu-system-x86_64",
        "bench --size 8G --writes 100M --variant plain --variant xbzrle --plot bench.svg",
        "bench --writes still --content zero --destination warm --json",
    )
)
@click.option(
    "--size",
    "sizes",
    type=size,
    multiple=True,
    default=("2G",),
    show_default=True,
    help="RAM of the guest",
)
@click.option("--runs", type=click.IntRange(1), help="of each program [default: 5; quick: 1]")
@click.option(
    "--writes",
    multiple=True,
    type=rate,
    default=("20M",),
    show_default=True,
    help="bytes a second that the running guest writes into its hot set; still: it is paused",
)
@click.option(
    "--content",
    "contents",
    multiple=True,
    type=click.Choice(CONTENTS),
    default=("random",),
    show_default=True,
    help="what RAM holds",
)
@click.option(
    "--destination",
    "destinations",
    multiple=True,
    type=click.Choice(DESTINATIONS),
    default=("cold",),
    show_default=True,
    help="whether the destination's memory is made as pages arrive, or before",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    default=("plain",),
    show_default=True,
    help="plain; xbzrle; zstd[:LEVEL] or adaptive: the link (QEMU: multifd-zstd); multifd or"
    " multifd-zstd[:LEVEL]: over two channels",
)
@click.option("--hot", type=size, help="bytes that the guest writes again and again [default: 64M]")
@setting_option(settings.MAX_BANDWIDTH)
@click.option("--qemu", metavar="COMMAND", help="a QEMU to compare with, with what it needs")
@click.option("--quick", is_flag=True, help="four cases of 256 MiB, in less than a minute")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="draw a .png or .svg, too"
)
@click.option("--json", "as_json", is_flag=True, help="print medians and single runs as JSON")
def bench(
    sizes: tuple[int, ...],
    runs: int | None,
    writes: tuple[int | str, ...],
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
    """Measure migrations over loopback TCP, in turns with QEMU's own."""
    rates = [None if each == "still" else int(each) for each in writes]
    rows = [
        (ram, content, each, destination, variant)
        for ram in sizes
        for each in rates
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
