"""Receives the reports of a measurement's child processes, or their deaths."""

from __future__ import annotations

from typing import Any

from ...protocol.errors import VmferryError
from ...transport.process import Child, ChildDied


class ChildError(VmferryError):
    """A child process failed; the message is one line that says why."""


def next_message(child: Child) -> Any:
    """Return the next message of a child. Raises ChildError if it ends without one."""
    try:
        message = child.connection.recv()
    except (EOFError, ConnectionError):
        raise ChildError(child.death()) from None
    if isinstance(message, ChildDied):
        message.log()
        raise ChildError(str(message))
    return message
