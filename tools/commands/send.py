"""Defines the command `send`: its options and exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from ...control.migrating import new_sender
from ...guest.errors import GuestError, MigrationError
from ...guest.open import open_guest
from ...protocol.errors import ParameterError
from ...relay.parameters import MAX_CONNECTIONS, RECONNECT, RelayParameters, Side
from ...relay.proofs import read_secret
from ...sender.page_cache import CacheSizeError
from ...sender.parameters import SendParameters
from ...sender.throttle import ThrottleParameters
from ...transport import settings
from ...transport.uri import UriError
from ..console.command import command
from ..console.failure import describe, fail
from ..console.interruption import on_signals
from ..console.logs import log_options, quiet_option
from ..console.migration_options import compression, guest_option
from ..console.progress import Progress
from ..console.setting_options import setting_option
from ..console.summary import summary
from ..console.types import Uri

_THROTTLE_OPTIONS = (
    "cpu_throttle_initial",
    "cpu_throttle_increment",
    "max_cpu_throttle",
    "throttle_trigger_threshold",
)


_MULTIFD_OPTIONS = (
    "multifd_compression",
    "multifd_zlib_level",
    "multifd_zstd_level",
    "zero_page_detection",
)


_RELAY_OPTIONS = ("connections", "reconnect", "secret_file")


_GROUPS = {
    "Encoding": ("compress", "xbzrle", "xbzrle_cache_size"),
    "Several connections": ("multifd_channels", *_MULTIFD_OPTIONS),
    "Files": ("mapped_ram", "direct_io"),
    "A relay": ("relay", "connections", "reconnect", "secret_file"),
    "Guests that write faster than the link sends": (
        "auto_converge",
        *_THROTTLE_OPTIONS,
        "on_stall",
    ),
}


def _check_needs(needed: str, *options: str) -> None:
    """Raise UsageError if the user gave one of the options without the `needed` one."""
    context = click.get_current_context()
    for option in options:
        given = context.get_parameter_source(option) is ParameterSource.COMMANDLINE
        if given and not context.params[needed]:
            raise click.UsageError(f"--{option} needs --{needed}".replace("_", "-"))


def _parameters(values: dict[str, Any], *, auto_converge: bool) -> SendParameters:
    """Return the parameters that the options stand for. Raises UsageError."""
    try:
        throttle = ThrottleParameters(*(values.pop(option) for option in _THROTTLE_OPTIONS))
        values["auto_converge"] = throttle if auto_converge else None
        values["downtime_limit"] /= 1000
        values["compress"] = compression(values["compress"])
        return SendParameters(**values)
    except ParameterError as error:
        # Options are spelled with hyphens.
        raise click.UsageError(str(error).replace("_", "-")) from None


def _link(
    uri: str, parameters: SendParameters, secret_file: str | None, **options: Any
) -> RelayParameters:
    """Return the parameters of the link to a relay. Raises UsageError."""
    try:
        return RelayParameters(
            connect=uri,
            side=Side.NEAR,
            compress=parameters.compress,
            max_bandwidth=parameters.max_bandwidth,
            one_way=not parameters.return_path,
            once=True,
            secret=b"" if secret_file is None else read_secret(secret_file),
            **options,
        )
    except ParameterError as error:
        raise click.UsageError(str(error)) from None


def _note(*, quiet: bool) -> Callable[[str], None]:
    """Return what takes a line about the link to a relay."""
    return lambda line: None if quiet else Progress.say(f"sending: {line}")


@command(
    "send tcp:127.0.0.1:7002 --guest dir:saved",
    "send tcp:host:7001 --guest synthetic:512M --compress adaptive --max-bandwidth 100M",
    "send tcp:host:7001 --guest dir:saved --multifd-channels 4 --multifd-compression zstd",
    "send tcp:host:7001 --guest dir:saved --disks all",
    "send file:guest.save --guest dir:saved --mapped-ram --workers 4",
    "send tcp:host:7001 --guest qemu:/run/vm.qmp --downtime-limit 100 --auto-converge",
    groups=_GROUPS,
)
@click.argument("uri", type=Uri())
@guest_option
@setting_option(settings.MAX_BANDWIDTH)
@setting_option(settings.AVAIL_SWITCHOVER_BANDWIDTH)
@setting_option(settings.DOWNTIME_LIMIT)
@setting_option(settings.DISKS)
@setting_option(settings.WORKERS)
@click.option(
    "--return-path/--no-return-path",
    default=True,
    show_default=True,
    help="ask the destination to confirm that it has the guest; channels of one direction cannot",
)
@click.option(
    "--xbzrle",
    is_flag=True,
    help="send a page that changed a little as its difference to what was sent before",
)
@setting_option(settings.XBZRLE_CACHE_SIZE, default=None)
@setting_option(settings.COMPRESS)
@click.option(
    "--auto-converge",
    is_flag=True,
    help="slow the guest down, step by step, while it writes faster than the link sends",
)
@setting_option(settings.CPU_THROTTLE_INITIAL)
@setting_option(settings.CPU_THROTTLE_INCREMENT)
@setting_option(settings.MAX_CPU_THROTTLE)
@setting_option(settings.THROTTLE_TRIGGER_THRESHOLD)
@setting_option(settings.ON_STALL)
@setting_option(settings.TRACKER)
@setting_option(settings.MULTIFD_CHANNELS, default=None, show_default=False)
@setting_option(settings.MULTIFD_COMPRESSION)
@setting_option(settings.MULTIFD_ZLIB_LEVEL)
@setting_option(settings.MULTIFD_ZSTD_LEVEL)
@setting_option(settings.ZERO_PAGE_DETECTION)
@click.option(
    "--mapped-ram",
    is_flag=True,
    help="write a file in which each page has its place, from several workers at once (file: only)",
)
@setting_option(settings.DIRECT_IO)
@click.option(
    "--relay",
    is_flag=True,
    help="URI is that of a `vmferry relay --link far`, whose link survives a cut (qemu: only)",
)
@click.option(
    "--connections",
    default=1,
    show_default=True,
    type=click.IntRange(1, MAX_CONNECTIONS),
    help="connections of the link to a relay",
)
@click.option(
    "--reconnect",
    default=RECONNECT,
    show_default=True,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="how long the link to a relay may be cut before the migration fails",
)
@click.option(
    "--secret-file",
    type=click.Path(dir_okay=False),
    help="file with a secret that the relay has to know, too",
)
@log_options
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="print the final figures as JSON")
def send(
    uri: str,
    guest_text: str,
    auto_converge: bool,
    relay: bool,
    quiet: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Send a guest to URI, while it runs.

    URI is tcp:HOST:PORT, unix:PATH, exec:COMMAND, fd:NUMBER or file:PATH[,offset=SIZE]. The
    destination is a `vmferry receive`, or a QEMU that was started with -incoming.
    """
    _check_needs("auto_converge", *_THROTTLE_OPTIONS)
    _check_needs("xbzrle", "xbzrle_cache_size")
    _check_needs("multifd_channels", *_MULTIFD_OPTIONS)
    _check_needs("mapped_ram", "direct_io")
    _check_needs("relay", *_RELAY_OPTIONS)
    relayed = {name: values.pop(name) for name in _RELAY_OPTIONS}
    parameters = _parameters(values, auto_converge=auto_converge)
    link = _link(uri, parameters, **relayed) if relay else None
    try:
        guest = open_guest(guest_text)
        try:
            sender = new_sender(guest, uri, parameters, link, _note(quiet=quiet))
            on_signals(lambda _: sender.leave())
            with Progress("sending", quiet=quiet) as progress:
                figures = sender.run(progress.update)
                for line in () if as_json or quiet else summary(figures):
                    progress.say(line)
        except Exception:
            # The guest still runs here, and must run on when this process has ended (law 5).
            guest.release()
            raise
        finally:
            guest.close()
    except ParameterError as error:
        # Options are spelled with hyphens.
        raise click.UsageError(str(error).replace("_", "-")) from None
    except (GuestError, MigrationError, UriError, CacheSizeError, OSError) as error:
        fail(describe(error))
    if as_json:
        click.echo(json.dumps(figures.as_qmp()))
