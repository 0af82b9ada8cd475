"""Defines the command `demo`: its options and exit status."""

from __future__ import annotations

import click

from ...guest.errors import GuestError, MigrationError
from ...transport import settings
from ..console.command import command
from ..console.failure import describe, fail
from ..console.setting_options import setting_option
from ..console.types import Size
from ..measure import demo as demo_command


@command("demo", "demo --size 1G --dirty-rate 50M")
@click.option(
    "--size", "ram", type=Size(), default="512M", show_default=True, help="RAM of the guest"
)
@click.option(
    "--dirty-rate",
    type=Size(),
    default="200M",
    show_default=True,
    help="number of bytes that the guest writes per second",
)
@setting_option(settings.MAX_BANDWIDTH, default="600M")
def demo(ram: int, dirty_rate: int, max_bandwidth: int) -> None:
    """Migrate a busy guest between two groups of processes over TCP, and verify its memory."""
    try:
        equal = demo_command.run(ram, dirty_rate, max_bandwidth)
    except (GuestError, MigrationError, demo_command.DemoError, OSError) as error:
        fail(describe(error))
    if not equal:
        fail("the memories differ")
