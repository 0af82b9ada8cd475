"""Defines the command `demo`: its options and exit status."""

from __future__ import annotations

import click

from ...guest.errors import GuestError, MigrationError
from ...transport import settings
from ..console.examples import examples
from ..console.failure import describe, fail
from ..console.setting_options import setting_option
from ..measure import demo as demo_command


@click.command(epilog=examples("demo", "demo --size 1G --dirty-rate 50M"))
@click.option("--size", "ram", default="512M", show_default=True, help="RAM of the guest")
@click.option("--dirty-rate", default="200M", show_default=True, help="bytes written a second")
@setting_option(settings.MAX_BANDWIDTH, default="600M")
def demo(ram: str, dirty_rate: str, max_bandwidth: int) -> None:
    """Migrate a busy guest between two real process groups over TCP; watch and verify it."""
    try:
        equal = demo_command.run(ram, dirty_rate, max_bandwidth)
    except (GuestError, MigrationError, demo_command.DemoError, OSError) as error:
        fail(describe(error))
    if not equal:
        fail("the memories differ")
