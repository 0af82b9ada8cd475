"""Defines the command `bench`: its options and exit status."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

import click

from ...guest.errors import GuestError, MigrationError
from ...transport import settings
from ..console.examples import examples
from ..console.failure import describe, fail
from ..console.options import compression
from ..console.setting_options import setting_option
from ..console.sizes import size
from ..measure import bench as bench_command
from ..measure.bench import Variant
from ..measure.bench_memory import CONTENTS, BenchError


@click.command(
    epilog=examples("bench --size 2G --content random", "bench --qemu qemu-system-x86_64 --runs 3")
)
@click.option("--size", "ram", type=size, default="2G", show_default=True, help="RAM of the guest")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--content",
    "contents",
    multiple=True,
    type=click.Choice(CONTENTS),
    default=("random", "zero", "untouched"),
    show_default=True,
    help="what RAM holds",
)
@click.option(
    "--compress",
    "methods",
    multiple=True,
    default=(settings.COMPRESS.default,),
    show_default=True,
    help=f"{settings.COMPRESS.help}; may be given several times, to measure each in turn",
)
@setting_option(settings.MAX_BANDWIDTH)
@click.option("--qemu", metavar="COMMAND", help="a QEMU to compare with, with what it needs")
@click.option("--json", "as_json", is_flag=True, help="print the medians as JSON")
def bench(
    ram: int,
    runs: int,
    contents: tuple[str, ...],
    methods: tuple[str, ...],
    max_bandwidth: int,
    qemu: str | None,
    as_json: bool,
) -> None:
    """Measure migrations over loopback TCP, in turns with QEMU's own."""
    try:
        variants = tuple(Variant(compression(method), max_bandwidth) for method in methods)
        tell = partial(click.echo, err=True)
        results = bench_command.bench(ram, contents, runs, qemu, variants, tell)
    except (GuestError, MigrationError, BenchError, OSError) as error:
        fail(describe(error))
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
    else:
        bench_command.print_results(results)
