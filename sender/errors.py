"""Define how an outgoing migration can fail to complete."""

from __future__ import annotations


class MigrationError(Exception):
    """The migration failed; the message is one line for a user. The guest stays as it was."""


class MigrationCancelledError(MigrationError):
    """The migration was stopped by `cancel`."""


class UnconfirmedError(MigrationError):
    """The destination has the whole guest, but did not confirm that it runs.

    The message is one line for a user. The guest is paused at the source and must not run there
    unless it cannot run at the destination.
    """
