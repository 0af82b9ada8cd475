"""Define the errors that commands report; a client sees their class and their one-line message."""

from __future__ import annotations

from ..protocol.errors import VmferryError


class QmpError(VmferryError):
    """A command failed, with `GenericError`, the class of nearly every error."""

    error_class = "GenericError"

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description


class CommandNotFoundError(QmpError):
    """A command is unknown, or not allowed at this time."""

    error_class = "CommandNotFound"
