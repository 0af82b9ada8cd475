"""Let a QEMU go on whose guest was stopped to be moved, and stays here."""

from __future__ import annotations

from contextlib import suppress

from . import queries
from .local_migration import wait_until
from .monitor import GoneError, Monitor, QemuError
from .settings import Wanted, put


def bring_back(monitor: Monitor, settings: Wanted, *, run: bool) -> None:
    """End what is left of a migration, restore the settings, and let the guest `run`.

    Whoever does this twice changes nothing. Raises QemuError.
    """
    if queries.migration(monitor)["status"] in queries.UNDER_WAY:
        # It may end by itself at this moment.
        with suppress(QemuError):
            monitor.ask("migrate_cancel")
    wait_until(
        lambda: queries.migration(monitor)["status"] not in queries.UNDER_WAY,
        "QEMU does not end its migration",
    )
    if run and not queries.is_running(monitor):
        start(monitor)
    put(monitor, settings)


def start(monitor: Monitor) -> None:
    """Let the guest of a QEMU run.

    Raises QemuError if it does not run, and will not by itself: QEMU refused, or is gone.
    """
    try:
        monitor.ask("cont")
    except QemuError as error:
        if error.kind or isinstance(error, GoneError):
            raise
        # QEMU is busy. What it was asked, it will do, so nothing else may be said of it.
        while not _runs(monitor):
            continue


def _runs(monitor: Monitor) -> bool:
    """Return whether the guest runs, or False as long as QEMU does not answer."""
    try:
        return queries.is_running(monitor)
    except GoneError:
        raise
    except QemuError:
        return False
