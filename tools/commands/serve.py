"""Defines the command that keeps a guest and serves QMP clients."""

from __future__ import annotations

import asyncio

import click

from ...control.announce import AnnounceError, Announcer, Interface
from ...control.server import Listening, Server, ServerError
from ...control.service import Service, ServiceError
from ...guest.base import Guest
from ...guest.errors import GuestError
from ...guest.open import open_guest
from ...transport.process import start_early
from ..console.command import command
from ..console.failure import describe, fail
from ..console.interruption import signals_in
from ..console.logs import log_options
from ..console.migration_options import announce_option, guest_option, paused_option
from ..console.progress import Progress
from ..console.types import Address, Uri


@command(
    "serve --guest synthetic:512M --qmp unix:a.sock",
    "serve --guest synthetic: --qmp unix:b.sock --incoming tcp:127.0.0.1:7001",
)
@guest_option
@click.option(
    "--qmp",
    "addresses",
    required=True,
    multiple=True,
    type=Address(),
    metavar="unix:PATH|tcp:HOST:PORT",
    help="socket for QMP clients; repeat for more",
)
@click.option(
    "--incoming",
    type=Uri(),
    metavar="URI|defer",
    help="receive the guest from URI first; with `defer`, from where a client says",
)
@paused_option
@announce_option
@log_options
def serve(
    guest_text: str,
    addresses: tuple[str, ...],
    incoming: str | None,
    paused: bool,
    interfaces: tuple[Interface, ...],
) -> None:
    """Keep a guest running, and send or receive it when a QMP client says so."""
    try:
        guest = open_guest(guest_text, incoming=incoming is not None)
        try:
            start_early()
            # Report an unusable interface now, not when the guest has arrived.
            Announcer(interfaces).stop()
            asyncio.run(_serve(guest, addresses, incoming, paused, interfaces))
        finally:
            guest.close()
    except (GuestError, ServerError, ServiceError, AnnounceError, OSError) as error:
        fail(describe(error))


async def _serve(
    guest: Guest,
    addresses: tuple[str, ...],
    incoming: str | None,
    paused: bool,
    interfaces: tuple[Interface, ...],
) -> None:
    listening: list[Listening] = []
    try:
        for address in addresses:
            listening.append(Listening(address))
        service = Service(guest, incoming, paused=paused, announce=interfaces)
        if service.incoming is not None:
            service.incoming.on_refused = Progress.say
        loop = asyncio.get_running_loop()
        with signals_in(loop, lambda _: service.quit("host-signal")):
            for place in listening:
                click.echo(f"QMP on {place.address}", err=True)
            await Server(service, [place.socket for place in listening]).run()
    finally:
        for place in listening:
            place.close()
