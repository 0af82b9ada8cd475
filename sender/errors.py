"""How an outgoing migration ends that does not complete."""

from __future__ import annotations


class MigrationError(Exception):
    """The migration failed; one line, for a person. The guest is where and as it was."""


class MigrationCancelledError(MigrationError):
    """Somebody called `cancel`."""


class UnconfirmedError(MigrationError):
    """The guest left, and nobody has said that it runs at the destination, which has it whole.

    One line, for a person. The guest is paused here and must not run unless it cannot run there.
    """
