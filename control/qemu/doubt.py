"""Know when a QEMU that migrates may be told to take its guest back (law 5)."""

from __future__ import annotations

from typing import Any

from ...guest.qemu import queries
from ...guest.qemu.monitor import Monitor
from ...protocol.states import MigrationStatus


def may_be_there(monitor: Monitor, told: dict[str, Any]) -> bool:
    """Return whether the destination may have the whole guest, so that a cancel could make two run.

    `told`: what `query-migrate` has just said. That is once QEMU has sent all memory of the stopped
    guest, and maybe its devices.
    """
    before = (MigrationStatus.SETUP, MigrationStatus.PRE_SWITCHOVER)
    if told["status"] in before or told.get("ram", {}).get("remaining", 1):
        return False
    return queries.run_state(monitor) == queries.FINISH_MIGRATE
