"""Defines the command `send`: its options and exit status."""

from __future__ import annotations

import json
from typing import Any

import click
from click.core import ParameterSource

from ...guest.errors import GuestError, MigrationError
from ...guest.open import open_guest
from ...sender.coordinator import Sender
from ...sender.page_cache import CacheSizeError
from ...sender.parameters import OnStall, SendParameters
from ...sender.throttle import ThrottleError, ThrottleParameters
from ...sender.tracking import TrackerKind
from ...transport.crew import MAX_WORKERS
from ..console.examples import examples
from ..console.failure import describe, fail
from ..console.interruption import on_signals
from ..console.logs import log_option
from ..console.options import compression, guest_option
from ..console.progress import Progress
from ..console.sizes import size
from ..console.summary import summary

MAX_DOWNTIME = 2_000_000
"""The largest downtime limit in milliseconds, which is that of QEMU."""


class Milliseconds(click.IntRange):
    """A time in milliseconds, written as a number alone."""

    name = "ms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number. Raises BadParameter if it has a unit, or is out of range."""
        if not str(value).lstrip("-").isdigit():
            self.fail(f"{value!r} is no number of milliseconds, such as 300", param, ctx)
        milliseconds: int = super().convert(value, param, ctx)
        return milliseconds


def _throttle(initial: int, increment: int, maximum: int) -> ThrottleParameters:
    try:
        return ThrottleParameters(initial, increment, maximum)
    except ThrottleError as error:
        raise click.UsageError(str(error)) from None


_THROTTLE_OPTIONS = ("cpu_throttle_initial", "cpu_throttle_increment", "max_cpu_throttle")


def _check_needs(needed: str, *options: str) -> None:
    """Raise UsageError if the user gave one of the options without the `needed` one."""
    context = click.get_current_context()
    for option in options:
        given = context.get_parameter_source(option) is ParameterSource.COMMANDLINE
        if given and not context.params[needed]:
            raise click.UsageError(f"--{option} needs --{needed}".replace("_", "-"))


@click.command(
    epilog=examples(
        "send tcp:127.0.0.1:7002 --guest dir:saved",
        "send tcp:host:7001 --guest synthetic:512M --compress adaptive --max-bandwidth 100M",
    )
)
@click.argument("uri")
@guest_option()
@click.option("--max-bandwidth", type=size, help="bytes a second, as 100M; default: no limit")
@click.option(
    "--downtime-limit",
    type=Milliseconds(0, MAX_DOWNTIME),
    default=300,
    show_default=True,
    help="longest time that the guest may be stopped, in milliseconds",
)
@click.option(
    "--workers",
    type=click.IntRange(0, MAX_WORKERS),
    help="scanning processes besides the sender; 0: the sender scans (default: as many as help)",
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
@click.option(
    "--tracker",
    type=click.Choice([kind.value for kind in TrackerKind]),
    default=TrackerKind.AUTO.value,
    show_default=True,
    help="how to find the pages that the guest wrote: userfaultfd has the kernel mark them,"
    " digests reads all memory in every round; auto takes the first that is possible",
)
@log_option
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
    tracker: str,
    as_json: bool,
) -> None:
    """Move a guest out, to URI."""
    _check_needs("auto_converge", *_THROTTLE_OPTIONS)
    throttle = _throttle(cpu_throttle_initial, cpu_throttle_increment, max_cpu_throttle)
    _check_needs("xbzrle", "xbzrle_cache_size")
    parameters = SendParameters(
        max_bandwidth=max_bandwidth or None,
        downtime_limit=downtime_limit / 1000,
        workers=workers,
        return_path=return_path,
        xbzrle=xbzrle,
        xbzrle_cache_size=xbzrle_cache_size,
        compress=compression(compress),
        auto_converge=throttle if auto_converge else None,
        on_stall=OnStall(on_stall),
        tracker=TrackerKind(tracker),
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
