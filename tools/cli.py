"""The `vmferry` command: options in, exit status out; the work is done elsewhere.

Exit status: 0 done, 1 it failed, 2 wrong usage. Errors are one line on standard error.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from ..guest.base import GuestError
from ..guest.open import open_guest
from ..guest.sizes import parse_size
from ..protocol.errors import StreamError
from ..receiver.coordinator import MigrationError as ReceiveError
from ..receiver.coordinator import ReceiveParameters, Receiver
from ..sender.coordinator import MigrationError, Sender, SendParameters
from . import demo as demo_command
from . import dump as dump_command
from . import verify as verify_command
from .progress import Progress


class Size(click.ParamType[int]):
    """Bytes, as `512M`."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def fail(message: str) -> NoReturn:
    """One line, exit status 1."""
    click.echo(f"vmferry: {' '.join(message.split())}", err=True)
    sys.exit(1)


def _cancel_on_signals(cancel: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: cancel())


@click.group()
@click.version_option(package_name="vmferry")
def main() -> None:
    """Live migration of virtual machines, on QEMU's own wire format."""


@main.command()
@click.argument("uri")
@click.option("--guest", "guest_text", required=True, help="dir:PATH or synthetic:SIZE[,...]")
@click.option("--max-bandwidth", type=Size(), help="bytes a second, as 100M; default: no limit")
@click.option("--downtime-limit", type=click.IntRange(0), default=300, show_default=True, help="ms")
@click.option("--workers", type=click.IntRange(1, 64), help="processes that scan and encode")
@click.option(
    "--return-path/--no-return-path", default=True, help="let the destination answer (sockets)"
)
@click.option("--json", "as_json", is_flag=True, help="print the final figures as JSON")
def send(
    uri: str,
    guest_text: str,
    max_bandwidth: int | None,
    downtime_limit: int,
    workers: int | None,
    return_path: bool,
    as_json: bool,
) -> None:
    """Move a guest out, to URI."""
    parameters = SendParameters(max_bandwidth, downtime_limit / 1000, workers, return_path)
    try:
        guest = open_guest(guest_text)
        try:
            sender = Sender(guest, uri, parameters)
            _cancel_on_signals(sender.cancel)
            with Progress("sending") as progress:
                figures = sender.run(progress.update)
        finally:
            guest.close()
    except (GuestError, MigrationError) as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps(figures.as_qmp()))


@main.command()
@click.argument("uri")
@click.option("--guest", "guest_text", required=True, help="dir:PATH or synthetic:")
@click.option("--workers", type=click.IntRange(1, 64), help="processes that apply pages")
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
                    progress.update, lambda at: click.echo(f"listening on {at}", err=True)
                )
        finally:
            guest.close()
    except (GuestError, ReceiveError) as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps(figures.as_qmp()))


@main.command()
@click.argument("stream", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="stable keys, for programs")
@click.option("--pages", is_flag=True, help="list the runs of pages")
@click.option("--devices", is_flag=True, help="list the device sections")
def dump(stream: Any, as_json: bool, pages: bool, devices: bool) -> None:
    """Show what STREAM (a file, or - for standard input) holds."""
    try:
        summary = dump_command.summarise(stream, on_run=dump_command.print_run if pages else None)
    except (StreamError, OSError) as error:
        fail(f"{stream.name}: {error}")
    if as_json:
        click.echo(json.dumps(summary.as_json(), indent=2))
    else:
        dump_command.print_summary(summary, devices=devices)


@main.command()
@click.argument("stream", type=click.File("rb"))
@click.option("--ram", "ram", multiple=True, metavar="BLOCK=FILE", help="compare this RAM block")
def verify(stream: Any, ram: tuple[str, ...]) -> None:
    """Check that STREAM is whole, and that it rebuilds exactly this RAM."""
    files = {}
    for pair in ram:
        block, equals, path = pair.rpartition("=")
        if not equals or not block:
            raise click.UsageError(f"--ram {pair}: not BLOCK=FILE")
        files[block] = path
    try:
        differences = verify_command.verify(stream, files)
    except (StreamError, OSError, verify_command.VerifyError) as error:
        fail(f"{stream.name}: {error}")
    for difference in differences:
        click.echo(difference.describe())
    if differences:
        sys.exit(1)
    click.echo(f"{stream.name}: valid" + ("; RAM is equal" if files else ""))


@main.command()
@click.option("--size", default="512M", show_default=True, help="RAM of the guest")
@click.option("--dirty-rate", default="200M", show_default=True, help="bytes written a second")
@click.option("--max-bandwidth", type=Size(), default="600M", show_default=True)
def demo(size: str, dirty_rate: str, max_bandwidth: int) -> None:
    """Migrate a busy guest between two real process groups over TCP; watch and verify it."""
    try:
        equal = demo_command.run(size, dirty_rate, max_bandwidth)
    except (GuestError, MigrationError, demo_command.DemoError) as error:
        fail(str(error))
    if not equal:
        fail("the memories differ")


if __name__ == "__main__":
    main()
