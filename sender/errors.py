"""Define the error of an outgoing migration whose guest may run at its destination."""

from __future__ import annotations

from ..guest.errors import MigrationError


class UnconfirmedError(MigrationError):
    """The destination has the whole guest, but did not confirm that it runs.

    The message is one line for a user. The guest is paused at the source and must not run there
    unless it cannot run at the destination.
    """
