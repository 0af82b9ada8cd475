"""Know when a QEMU that migrates may be told to take its guest back (law 5)."""

from __future__ import annotations

import time
from typing import Any

from ...guest.qemu import queries
from ...guest.qemu.monitor import Monitor
from ...protocol.states import MigrationStatus

STUCK = 2.0
"""Seconds without a byte after which the last memory of a stopped guest does not leave any more."""


class Doubt:
    """Judge of whether the destination of a QEMU's migration may have the whole guest.

    A cancel could make two run then. Once the guest is stopped, what is left takes milliseconds,
    unless the link stands still.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._left: int | None = None
        self._since = 0.0

    def may_be_there(self, told: dict[str, Any]) -> bool:
        """Return whether a cancel is not safe now, after what `query-migrate` has just said."""
        before = (MigrationStatus.SETUP, MigrationStatus.PRE_SWITCHOVER)
        if told["status"] in before:
            return False
        if queries.run_state(self._monitor) != queries.FINISH_MIGRATE:
            self._left = None
            return False
        left, now = told.get("ram", {}).get("remaining", 0), time.monotonic()
        if left != self._left:
            self._left, self._since = left, now
        return not left or now < self._since + STUCK
