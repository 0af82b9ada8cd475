"""Define the errors of operations on a guest, and of migrations that move it."""

from __future__ import annotations

from ..protocol.errors import VmferryError


class GuestError(VmferryError):
    """An operation on a guest failed; the message is one line."""


class MigrationError(VmferryError):
    """The migration failed; the message is one line for a user.

    At the source the guest stays as it was. At the destination it was not started.
    """


class MigrationCancelledError(MigrationError):
    """The migration was stopped by `cancel`."""
