"""Live migration of virtual machines, on QEMU's own wire format.

The folders beside this file are the sub-packages of `vmferry`. The names that most programs need
can be imported from here; nothing is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module

# By its full name: tests load this file under the name of its folder, whatever that is.
from vmferry.protocol.lazy import exported

# Checkers know this name. Nothing that takes long is imported here: until a command handles
# signals, Ctrl-C shows a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .guest import Guest, GuestError, MigrationError, ProgramGuest, open_guest
    from .protocol import StreamError, StreamReader, StreamWriter, VmferryError
    from .receiver import ReceiveParameters, Receiver
    from .sender import Sender, SendParameters
    from .tools import open_stream, read_events

__version__ = "0.1.0"

__all__ = [
    "Guest",
    "GuestError",
    "MigrationError",
    "ProgramGuest",
    "ReceiveParameters",
    "Receiver",
    "SendParameters",
    "Sender",
    "StreamError",
    "StreamReader",
    "StreamWriter",
    "VmferryError",
    "open_guest",
    "open_stream",
    "read_events",
]

_PACKAGES = ("control", "guest", "protocol", "receiver", "relay", "sender", "tools", "transport")

_name = exported(
    __name__,
    {
        "guest": "Guest GuestError MigrationError ProgramGuest open_guest",
        "protocol": "StreamError StreamReader StreamWriter VmferryError",
        "receiver": "ReceiveParameters Receiver",
        "sender": "SendParameters Sender",
        "tools": "open_stream read_events",
    },
)


def __getattr__(name: str) -> Any:
    """Return a public name or a sub-package, which is imported when it is first used."""
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    return _name(name)
