"""Emit the events of migrations, which the capability `events` switches on."""

from __future__ import annotations

from typing import Any

from ..protocol.states import MigrationStatus
from ..sender.stall import Stall
from .capabilities import Capabilities
from .events import Events
from .extensions import STALL_EVENT, stall_as_qmp


class MigrationEvents:
    """The events of incoming and outgoing migrations."""

    def __init__(self, events: Events, capabilities: Capabilities) -> None:
        self._events = events
        self._capabilities = capabilities

    def changed(self, status: MigrationStatus) -> None:
        """Report the new status of the migration."""
        self._emit("MIGRATION", status=str(status))

    def round_begins(self, number: int) -> None:
        """Report that a round begins; the first one has number 1."""
        self._emit("MIGRATION_PASS", **{"pass": number})

    def stalls(self, stall: Stall) -> None:
        """Report that rounds no longer shrink."""
        self._emit(STALL_EVENT, **stall_as_qmp(stall))

    def _emit(self, name: str, **data: Any) -> None:
        if self._capabilities["events"]:
            self._events.emit(name, **data)
