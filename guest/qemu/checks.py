"""Find out before anything moves whether a running QEMU can give its guest away, or take one in."""

from __future__ import annotations

from . import queries
from .monitor import Monitor, QemuError

_NOT_HERE = {
    queries.INMIGRATE: "it waits for a guest itself",
    queries.POSTMIGRATE: "its guest has migrated away; `cont` lets the copy run that is left here",
    queries.FINISH_MIGRATE: "its guest is just migrating away",
    "colo": "its guest runs at two places (COLO)",
    "io-error": "its guest had an error of a drive",
    "internal-error": "its guest had an error of its processor",
    "save-vm": "it saves its guest",
    "restore-vm": "it restores its guest",
}
"""Run states in which a guest cannot be sent, and why, in words."""


def check_source(monitor: Monitor) -> None:
    """Raise QemuError in one line if the guest cannot migrate away now."""
    status = queries.migration(monitor)["status"]
    if status in queries.UNDER_WAY:
        raise QemuError(f"{monitor.path}: a migration of this QEMU is under way already ({status})")
    state = queries.run_state(monitor)
    if state in _NOT_HERE:
        raise QemuError(f"{monitor.path}: this QEMU has no guest to send: {_NOT_HERE[state]}")
    found = queries.blockers(monitor)
    if found:
        raise QemuError(f"{monitor.path}: the guest cannot migrate: {'; '.join(found)}")


def check_destination(monitor: Monitor) -> None:
    """Raise QemuError in one line if the QEMU does not wait for a guest."""
    state, status = queries.run_state(monitor), queries.migration(monitor)["status"]
    if state != queries.INMIGRATE:
        raise QemuError(
            f"{monitor.path}: this QEMU does not wait for a guest (it is {state}); start it with"
            " -incoming defer"
        )
    if status != "none":
        raise QemuError(
            f"{monitor.path}: this QEMU takes a guest in already, or has tried to ({status}); start"
            " it anew with -incoming defer"
        )
