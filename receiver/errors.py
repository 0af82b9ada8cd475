"""How an incoming migration ends that does not complete."""

from __future__ import annotations


class MigrationError(Exception):
    """The migration failed; one line, for a person. The guest was not started."""


class MigrationCancelledError(MigrationError):
    """Somebody called `cancel`."""


class KeptError(MigrationError):
    """The guest is here, whole and not started, because nobody knows whether its source runs it.

    One line, for a person: where the guest is, and how to take it up.
    """
