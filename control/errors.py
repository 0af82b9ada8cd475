"""What a command raises that cannot be done; a client sees its class and its one line."""

from __future__ import annotations


class QmpError(Exception):
    """`GenericError`, the class of nearly every error."""

    error_class = "GenericError"

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description


class CommandNotFoundError(QmpError):
    """No such command, or not at this time."""

    error_class = "CommandNotFound"
