"""Defines the command `relay`: its options and exit status."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from ...protocol.errors import ParameterError, VmferryError
from ...relay.parameters import MAX_CONNECTIONS, RECONNECT, RelayParameters, Side
from ...relay.proofs import read_secret
from ...relay.run import Relay, run_relay
from ...transport import settings
from ..console.command import command
from ..console.failure import describe, fail
from ..console.interruption import signals_in
from ..console.logs import log_options, quiet_option
from ..console.migration_options import compression
from ..console.relay_progress import RelayProgress
from ..console.setting_options import setting_option
from ..console.types import Uri


def _parameters(values: dict[str, Any], secret_file: str | None) -> RelayParameters:
    """Return the parameters that the options stand for. Raises UsageError."""
    try:
        secret = b"" if secret_file is None else read_secret(secret_file)
        values["compress"] = compression(values["compress"])
        return RelayParameters(secret=secret, side=Side(values.pop("link")), **values)
    except ParameterError as error:
        raise click.UsageError(str(error)) from None


@command(
    "relay unix:/run/ferry.sock tcp:other-host:7010 --link near --compress adaptive",
    "relay tcp:0.0.0.0:7010 tcp:127.0.0.1:4444 --link far --secret-file secret",
    "relay tcp:127.0.0.1:7001 tcp:other-host:7010 --link near --connections 4",
)
@click.argument("listen", metavar="LISTEN-URI", type=Uri())
@click.argument("connect", metavar="CONNECT-URI", type=Uri())
@click.option(
    "--link",
    required=True,
    type=click.Choice([side.value for side in Side]),
    help="near: this relay is beside the source, and connects to the other one; far: it is beside"
    " the destination, and waits for the other one",
)
@setting_option(settings.COMPRESS)
@setting_option(settings.MAX_BANDWIDTH)
@click.option(
    "--connections",
    default=1,
    show_default=True,
    type=click.IntRange(1, MAX_CONNECTIONS),
    help="connections of the link; more of them fill a link with a long delay (near only)",
)
@click.option(
    "--reconnect",
    default=RECONNECT,
    show_default=True,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="how long the link may be cut before the migration fails and the source runs on",
)
@click.option(
    "--secret-file",
    type=click.Path(dir_okay=False),
    help="file with a secret that the other relay has to know, too",
)
@click.option(
    "--one-way",
    is_flag=True,
    help="pass sources whose destination does not confirm the end: the guest may be lost if the"
    " link breaks at the end (near only)",
)
@click.option("--once", is_flag=True, help="end after the first migration")
@log_options
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="print figures as JSON, a line a second")
def relay(secret_file: str | None, quiet: bool, as_json: bool, **values: Any) -> None:
    """Pass migrations of QEMUs over a link that compresses and survives a cut.

    A relay beside the source listens where the source connects, and connects to a relay beside the
    destination. That one listens for it, and connects to the destination. A relay that is --link
    far listens on this host alone unless LISTEN-URI names an address.
    """
    parameters = _parameters(values, secret_file)
    progress = RelayProgress(quiet=quiet, as_json=as_json)
    try:
        asyncio.run(_run(parameters, progress))
    except (VmferryError, OSError) as error:
        fail(describe(error))


async def _run(parameters: RelayParameters, progress: RelayProgress) -> None:
    watching: list[asyncio.Task[None]] = []

    def started(relay: Relay) -> None:
        watching.append(asyncio.create_task(progress.watch(relay)))

    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(run_relay(parameters, progress.say, started))
    ended: list[int] = []

    def leave(number: int) -> None:
        ended.append(number)
        running.cancel()

    with signals_in(loop, leave):
        try:
            await running
        except asyncio.CancelledError:
            raise SystemExit(128 + ended[0]) from None
        finally:
            for task in watching:
                task.cancel()
