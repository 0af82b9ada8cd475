"""Define how an incoming migration can fail to complete."""

from __future__ import annotations


class MigrationError(Exception):
    """The migration failed; the message is one line for a user. The guest was not started."""


class MigrationCancelledError(MigrationError):
    """The migration was stopped by `cancel`."""


class KeptError(MigrationError):
    """The guest is here, whole and not started, because its source may or may not run it.

    The message is one line for a user: where the guest is, and how to start it.
    """
