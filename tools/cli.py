"""The `vmferry` command: options in, exit status out; the work is done elsewhere.

Exit status: 0 done, 1 it failed, 2 wrong usage. Errors are one line on standard error.
"""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import BinaryIO, NoReturn, cast

import click

from ..guest.base import GuestError
from ..guest.open import open_guest
from ..guest.sizes import parse_size
from ..protocol.errors import StreamError
from ..receiver.coordinator import MigrationError as ReceiveError
from ..receiver.coordinator import ReceiveParameters, Receiver
from ..sender.compression import CompressionError, parse_compression
from ..sender.coordinator import MigrationError, Sender, SendParameters
from ..sender.page_cache import CacheSizeError
from . import bench as bench_command
from . import demo as demo_command
from . import dump as dump_command
from . import verify as verify_command
from .bench import Variant
from .progress import Progress

MAX_DOWNTIME = 2_000_000
"""Milliseconds; as in QEMU."""


def size(text: str) -> int:
    """Bytes, from `512M`."""
    try:
        value = parse_size(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error)) from None
    if value >= 1 << 63:
        raise click.BadParameter(f"{text!r} is too much")
    return value


def _compression(text: str) -> str:
    """The same, if it is one."""
    try:
        parse_compression(text)
    except CompressionError as error:
        raise click.BadParameter(str(error), param_hint="--compress") from None
    return text


def fail(message: str) -> NoReturn:
    """One line, exit status 1."""
    click.echo(f"vmferry: {' '.join(message.split())}", err=True)
    sys.exit(1)


def _describe(error: Exception, name: str | None = None) -> str:
    """What went wrong, and with what; `name` where the error itself does not say."""
    what, message = name, str(error)
    if isinstance(error, OSError) and error.strerror:
        what, message = error.filename or name, error.strerror
    return message if what is None else f"{click.format_filename(what)}: {message}"


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """A stream file, or `-`; whatever is wrong with it or in it ends the command."""
    try:
        with click.open_file(path, "rb") as stream:
            yield cast(BinaryIO, stream)
    except BrokenPipeError:
        # Nobody reads our output any more, which is no news of the stream.
        raise
    except (StreamError, OSError, verify_command.VerifyError) as error:
        fail(_describe(error, path))


def _cancel_on_signals(cancel: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: cancel())


@click.group()
@click.version_option(package_name="vmferry")
def main() -> None:
    """Live migration of virtual machines, on QEMU's own wire format."""
    # Names come from streams; a terminal that lacks a character must not end the command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@main.command()
@click.argument("uri")
@click.option("--guest", "guest_text", required=True, help="dir:PATH or synthetic:SIZE[,...]")
@click.option("--max-bandwidth", type=size, help="bytes a second, as 100M; default: no limit")
@click.option(
    "--downtime-limit", type=click.IntRange(0, MAX_DOWNTIME), default=300, help="ms; default: 300"
)
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    help="beside the one that sends",
)
@click.option(
    "--return-path/--no-return-path", default=True, help="let the destination answer (sockets)"
)
@click.option("--xbzrle", is_flag=True, help="send pages that changed a little as differences")
@click.option(
    "--xbzrle-cache-size", type=size, help="bytes; default: 64M, or all RAM where that is less"
)
@click.option(
    "--compress", default="none", help="none, zstd[:LEVEL] or adaptive (by what is scarce)"
)
@click.option("--json", "as_json", is_flag=True, help="print the final figures as JSON")
def send(
    uri: str,
    guest_text: str,
    max_bandwidth: int | None,
    downtime_limit: int,
    workers: int | None,
    return_path: bool,
    xbzrle: bool,
    xbzrle_cache_size: int | None,
    compress: str,
    as_json: bool,
) -> None:
    """Move a guest out, to URI."""
    if xbzrle_cache_size is not None and not xbzrle:
        raise click.UsageError("--xbzrle-cache-size needs --xbzrle")
    parameters = SendParameters(
        max_bandwidth,
        downtime_limit / 1000,
        workers,
        return_path,
        xbzrle,
        xbzrle_cache_size,
        _compression(compress),
    )
    try:
        guest = open_guest(guest_text)
        try:
            sender = Sender(guest, uri, parameters)
            _cancel_on_signals(sender.cancel)
            with Progress("sending") as progress:
                figures = sender.run(progress.update)
        except Exception:
            # It runs on here, and so it shall when we are gone (law 5).
            guest.release()
            raise
        finally:
            guest.close()
    except (GuestError, MigrationError, CacheSizeError, OSError) as error:
        fail(_describe(error))
    if as_json:
        click.echo(json.dumps(figures.as_qmp()))


@main.command()
@click.argument("uri")
@click.option("--guest", "guest_text", required=True, help="dir:PATH or synthetic:")
@click.option("--workers", type=click.IntRange(0, 64), help="beside the one that reads")
@click.option("--paused", is_flag=True, help="do not resume the guest")
@click.option("--json", "as_json", is_flag=True, help="print the final figures as JSON")
def receive(uri: str, guest_text: str, workers: int | None, paused: bool, as_json: bool) -> None:
    """Take a guest in, from URI."""
    try:
        guest = open_guest(guest_text)
        try:
            receiver = Receiver(guest, uri, ReceiveParameters(workers, paused))
            _cancel_on_signals(receiver.cancel)
            with Progress("receiving") as progress:
                figures = receiver.run(
                    progress.update, lambda at: progress.say(f"listening on {at}")
                )
        finally:
            guest.close()
    except (GuestError, ReceiveError, OSError) as error:
        fail(_describe(error))
    if as_json:
        click.echo(json.dumps(figures.as_qmp()))


@main.command()
@click.argument("stream", metavar="STREAM")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
@click.option("--pages", is_flag=True, help="list the runs of pages; as JSON: an object a line")
@click.option("--devices", is_flag=True, help="list the device sections")
def dump(stream: str, as_json: bool, pages: bool, devices: bool) -> None:
    """Show what STREAM (a file, or - for standard input) holds."""
    show = dump_command.print_pages_as_json if as_json else dump_command.print_pages
    with _opened(stream) as file:
        summary = dump_command.summarise(file, on_pages=show if pages else None)
    if as_json:
        click.echo(json.dumps(summary.as_json(), indent=None if pages else 2))
    else:
        dump_command.print_summary(summary, devices=devices)


@main.command()
@click.argument("stream", metavar="STREAM")
@click.option("--ram", "ram", multiple=True, metavar="BLOCK=FILE", help="compare this RAM block")
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
def verify(stream: str, ram: tuple[str, ...], as_json: bool) -> None:
    """Check that STREAM (a file, or - for standard input) is whole, and rebuilds this RAM."""
    files = _ram_files(ram)
    with _opened(stream) as file:
        try:
            compared = verify_command.verify(file, files)
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


@main.command()
@click.option("--size", "ram", default="512M", show_default=True, help="RAM of the guest")
@click.option("--dirty-rate", default="200M", show_default=True, help="bytes written a second")
@click.option("--max-bandwidth", type=size, default="600M", show_default=True)
def demo(ram: str, dirty_rate: str, max_bandwidth: int) -> None:
    """Migrate a busy guest between two real process groups over TCP; watch and verify it."""
    try:
        equal = demo_command.run(ram, dirty_rate, max_bandwidth)
    except (GuestError, MigrationError, demo_command.DemoError, OSError) as error:
        fail(_describe(error))
    if not equal:
        fail("the memories differ")


@main.command()
@click.option("--size", "ram", type=size, default="2G", show_default=True, help="RAM of the guest")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--content",
    "contents",
    multiple=True,
    type=click.Choice(bench_command.CONTENTS),
    default=("random", "zero", "untouched"),
    show_default=True,
    help="what RAM holds",
)
@click.option(
    "--compress",
    "methods",
    multiple=True,
    default=("none",),
    show_default=True,
    help="as in send; several are measured in turns",
)
@click.option("--max-bandwidth", type=size, help="bytes a second; default: no limit")
@click.option("--qemu", metavar="COMMAND", help="a QEMU to compare with, with what it needs")
@click.option("--json", "as_json", is_flag=True, help="print the medians as JSON")
def bench(
    ram: int,
    runs: int,
    contents: tuple[str, ...],
    methods: tuple[str, ...],
    max_bandwidth: int | None,
    qemu: str | None,
    as_json: bool,
) -> None:
    """Measure migrations over loopback TCP, in turns with QEMU's own."""
    try:
        variants = tuple(Variant(_compression(method), max_bandwidth) for method in methods)
        tell = partial(click.echo, err=True)
        results = bench_command.bench(ram, contents, runs, qemu, variants, tell)
    except (GuestError, MigrationError, bench_command.BenchError, OSError) as error:
        fail(_describe(error))
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
    else:
        bench_command.print_results(results)


if __name__ == "__main__":
    main()
