"""Defines the command `receive`: its options and exit status."""

from __future__ import annotations

import json

import click

from ...control.announce import AnnounceError, Announcer, Interface
from ...control.migrating import new_receiver
from ...guest.errors import GuestError, MigrationError
from ...guest.open import open_guest
from ...protocol.errors import ParameterError
from ...protocol.states import MigrationStatus
from ...receiver.coordinator import ReceiveParameters
from ...receiver.figures import Figures
from ...transport import settings
from ..console.command import command
from ..console.failure import describe, fail
from ..console.interruption import on_signals
from ..console.logs import log_options, quiet_option
from ..console.migration_options import announce_option, guest_option, paused_option
from ..console.progress import Progress
from ..console.setting_options import setting_option
from ..console.types import Uri


@command(
    "receive tcp:127.0.0.1:7001 --guest dir:saved",
    "receive tcp::7001 --guest dir:saved --multifd-channels 4",
    "receive file:guest.save --guest dir:saved",
    "receive --resume --guest dir:saved",
    "receive tcp::7001 --guest qemu:/run/vm.qmp",
)
@click.argument("uri", type=Uri(), required=False)
@guest_option
@setting_option(settings.WORKERS)
@setting_option(settings.MULTIFD_CHANNELS, default=None, show_default=False)
@setting_option(settings.DIRECT_IO)
@setting_option(settings.MAX_DEVICE_STATE)
@paused_option
@click.option(
    "--resume",
    "taking_up",
    is_flag=True,
    help="receive nothing: start the guest that an earlier `receive` kept because it could not know"
    " whether the source runs it",
)
@announce_option
@log_options
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="print the final figures as JSON")
def receive(
    uri: str | None,
    guest_text: str,
    workers: int | None,
    multifd_channels: int | None,
    direct_io: bool,
    max_device_state: int,
    paused: bool,
    taking_up: bool,
    interfaces: tuple[Interface, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Receive a guest from URI, and let it run.

    URI is tcp:HOST:PORT or unix:PATH to listen at, exec:COMMAND, fd:NUMBER or
    file:PATH[,offset=SIZE]. The source is a `vmferry send`, or a QEMU.
    """
    if taking_up:
        _take_up(uri, guest_text)
        return
    if uri is None:
        raise click.UsageError("Missing argument 'URI': where the guest is sent from.")
    if paused and interfaces:
        raise click.UsageError("--announce: a guest that is --paused is not announced")
    try:
        with Announcer(interfaces) as announcer:
            parameters = ReceiveParameters(
                workers=workers,
                multifd_channels=multifd_channels,
                direct_io=direct_io,
                paused=paused,
                max_device_state=max_device_state,
            )
            progress = Progress("receiving", quiet=quiet)
            figures = _receive(uri, guest_text, parameters, announcer, progress)
            for line in announcer.finish():
                # A failed announcement is no failure: the guest has arrived.
                Progress.say(f"receiving: {line}")
    except ParameterError as error:
        # Options are spelled with hyphens.
        raise click.UsageError(str(error).replace("_", "-")) from None
    except (GuestError, MigrationError, AnnounceError, OSError) as error:
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
    uri: str,
    guest_text: str,
    parameters: ReceiveParameters,
    announcer: Announcer,
    progress: Progress,
) -> Figures:
    def announce_if_completed(_: MigrationStatus, new: MigrationStatus) -> None:
        if new is MigrationStatus.COMPLETED:
            announcer.start()

    guest = open_guest(guest_text, incoming=True)
    try:
        receiver = new_receiver(guest, uri, parameters)
        receiver.states.add_listener(announce_if_completed)
        on_signals(lambda _: receiver.leave())
        with progress:
            receiver.on_refused = lambda line: progress.say(f"receiving: {line}")
            return receiver.run(progress.update, progress.listening)
    finally:
        guest.close()
