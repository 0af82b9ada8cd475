"""Defines the commands that migrate guests and measure migrations: options and exit status."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

import click

from ...control.announce import AnnounceError, Announcer, Interface
from ...guest.errors import GuestError
from ...guest.open import open_guest
from ...guest.sizes import parse_size
from ...protocol.states import MigrationStatus
from ...receiver.coordinator import ReceiveParameters, Receiver
from ...receiver.errors import MigrationError as ReceiveError
from ...receiver.figures import Figures
from ...sender.compression import CompressionError, parse_compression
from ...sender.coordinator import Sender
from ...sender.errors import MigrationError
from ...sender.page_cache import CacheSizeError
from ...sender.parameters import OnStall, SendParameters
from ...sender.throttle import ThrottleError, ThrottleParameters
from ..console.failure import describe, fail
from ..console.interruption import on_signals
from ..console.options import announce_option, guest_option, paused_option
from ..console.progress import Progress
from ..console.sizes import size_option
from ..console.summary import summary
from ..measure import bench as bench_command
from ..measure import demo as demo_command
from ..measure.bench import Variant
from ..measure.bench_memory import CONTENTS, BenchError

MAX_DOWNTIME = 2_000_000
"""The largest downtime limit in milliseconds, which is that of QEMU."""


def size(text: str) -> int:
    """Return the bytes in a size such as `512M`. Raises BadParameter."""
    try:
        value = parse_size(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error)) from None
    if value >= 1 << 63:
        raise click.BadParameter(f"{text!r} is too much")
    return value


def _compression(text: str) -> str:
    """Return the text if it is a valid compression method. Raises BadParameter."""
    try:
        parse_compression(text)
    except CompressionError as error:
        raise click.BadParameter(str(error), param_hint="--compress") from None
    return text


def _throttle(initial: int, increment: int, maximum: int) -> ThrottleParameters:
    try:
        return ThrottleParameters(initial, increment, maximum)
    except ThrottleError as error:
        raise click.UsageError(str(error)) from None


@click.command()
@click.argument("uri")
@guest_option()
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
@click.option("--auto-converge", is_flag=True, help="slow the guest down while it outruns the link")
@click.option("--cpu-throttle-initial", type=int, default=20, show_default=True, help="percent")
@click.option("--cpu-throttle-increment", type=int, default=10, show_default=True, help="percent")
@click.option("--max-cpu-throttle", type=int, default=99, show_default=True, help="percent")
@click.option(
    "--on-stall",
    type=click.Choice([action.value for action in OnStall]),
    default=OnStall.CONTINUE.value,
    show_default=True,
    help="when rounds no longer shrink",
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
    auto_converge: bool,
    cpu_throttle_initial: int,
    cpu_throttle_increment: int,
    max_cpu_throttle: int,
    on_stall: str,
    as_json: bool,
) -> None:
    """Move a guest out, to URI."""
    throttle = _throttle(cpu_throttle_initial, cpu_throttle_increment, max_cpu_throttle)
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
        throttle if auto_converge else None,
        OnStall(on_stall),
    )
    try:
        guest = open_guest(guest_text)
        try:
            sender = Sender(guest, uri, parameters)
            on_signals(lambda _: sender.leave())
            with Progress("sending") as progress:
                figures = sender.run(progress.update)
                for line in () if as_json else summary(figures):
                    progress.say(line)
        except Exception:
            # The guest still runs here, and must run on when this process has ended (law 5).
            guest.release()
            raise
        finally:
            guest.close()
    except (GuestError, MigrationError, CacheSizeError, OSError) as error:
        fail(describe(error))
    if as_json:
        click.echo(json.dumps(figures.as_qmp()))


@click.command()
@click.argument("uri", required=False)
@guest_option(incoming=True)
@click.option("--workers", type=click.IntRange(0, 64), help="beside the one that reads")
@click.option(
    "--max-device-state",
    default="4G",
    show_default=True,
    metavar="SIZE",
    callback=size_option,
    help="refuse more state of devices than this; beyond some MiB it is kept in a temporary file",
)
@paused_option
@click.option(
    "--resume",
    "taking_up",
    is_flag=True,
    help="receive nothing; complete the guest that an earlier receive kept, as it said",
)
@announce_option
@click.option("--json", "as_json", is_flag=True, help="print the final figures as JSON")
def receive(
    uri: str | None,
    guest_text: str,
    workers: int | None,
    max_device_state: int,
    paused: bool,
    taking_up: bool,
    interfaces: tuple[Interface, ...],
    as_json: bool,
) -> None:
    """Take a guest in, from URI."""
    if taking_up:
        _take_up(uri, guest_text)
        return
    if uri is None:
        raise click.UsageError("Missing argument 'URI': where the guest comes from.")
    if paused and interfaces:
        raise click.UsageError("--announce: a guest that is --paused is not announced")
    try:
        with Announcer(interfaces) as announcer:
            parameters = ReceiveParameters(workers, paused, max_device_state)
            figures = _receive(uri, guest_text, parameters, announcer)
            for line in announcer.finish():
                # A failed announcement is no failure: the guest has arrived.
                Progress.say(f"receiving: {line}")
    except (GuestError, ReceiveError, AnnounceError, OSError) as error:
        fail(describe(error))
    if as_json:
        click.echo(json.dumps(figures.as_qmp()))


def _take_up(uri: str | None, guest_text: str) -> None:
    """Complete a guest that an earlier receive kept; its source must not run it any more."""
    if uri is not None:
        raise click.UsageError("--resume takes no URI: the guest is here already")
    try:
        guest = open_guest(guest_text)
        try:
            guest.take_up()
        finally:
            guest.close()
    except (GuestError, OSError) as error:
        fail(describe(error))
    click.echo(f"the guest is complete: {guest_text}")


def _receive(
    uri: str, guest_text: str, parameters: ReceiveParameters, announcer: Announcer
) -> Figures:
    def announce_if_completed(_: MigrationStatus, new: MigrationStatus) -> None:
        if new is MigrationStatus.COMPLETED:
            announcer.start()

    guest = open_guest(guest_text)
    try:
        receiver = Receiver(guest, uri, parameters)
        receiver.states.add_listener(announce_if_completed)
        on_signals(lambda _: receiver.leave())
        with Progress("receiving") as progress:
            receiver.on_refused = lambda line: progress.say(f"receiving: {line}")
            return receiver.run(progress.update, lambda at: progress.say(f"listening on {at}"))
    finally:
        guest.close()


@click.command()
@click.option("--size", "ram", default="512M", show_default=True, help="RAM of the guest")
@click.option("--dirty-rate", default="200M", show_default=True, help="bytes written a second")
@click.option("--max-bandwidth", type=size, default="600M", show_default=True)
def demo(ram: str, dirty_rate: str, max_bandwidth: int) -> None:
    """Migrate a busy guest between two real process groups over TCP; watch and verify it."""
    try:
        equal = demo_command.run(ram, dirty_rate, max_bandwidth)
    except (GuestError, MigrationError, demo_command.DemoError, OSError) as error:
        fail(describe(error))
    if not equal:
        fail("the memories differ")


@click.command()
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
    except (GuestError, MigrationError, BenchError, OSError) as error:
        fail(describe(error))
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
    else:
        bench_command.print_results(results)
