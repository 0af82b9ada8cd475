"""Record what a user asks of a running migration: cancel it, or leave it."""

from __future__ import annotations

from ..transport.shared import Wakeup
from .errors import MigrationCancelledError
from .watching import Wishes


class Requests:
    """The user's requests to one migration, from any thread or signal handler."""

    def __init__(self) -> None:
        self.cancelled = False
        self._left = False
        self._wake = Wakeup()

    def fileno(self) -> int:
        """Return a descriptor that becomes readable with the first request."""
        return self._wake.fileno()

    def cancel(self) -> None:
        """Request that the migration stops as soon as possible."""
        self.cancelled = True
        self._wake.set()

    def leave(self) -> None:
        """Request a cancel, and that the command ends even if the guest's fate is unknown."""
        self._left = True
        self.cancel()

    def check(self) -> None:
        """Raise MigrationCancelledError after a request."""
        if self.cancelled:
            raise MigrationCancelledError("cancelled")

    def wishes(self) -> Wishes:
        """Return the requests as a handover reads them."""
        return Wishes(lambda: self.cancelled, lambda: self._left)

    def close(self) -> None:
        """Close the descriptor; later requests are recorded and wake nobody."""
        self._wake.close()
