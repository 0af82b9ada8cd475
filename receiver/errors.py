"""Define the error of an incoming migration whose guest is here, but may run at its source."""

from __future__ import annotations

from ..guest.errors import MigrationError


class KeptError(MigrationError):
    """The guest is here, whole and not started, because its source may or may not run it.

    The message is one line for a user: where the guest is, and how to start it.
    """
