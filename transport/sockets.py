"""Use what Linux offers of sockets beyond Python's methods."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_LINGER = struct.Struct("ii")
"""Layout of SO_LINGER: whether to wait, and seconds (socket(7))."""
_CREDENTIALS = struct.Struct("iII")
"""Layout of SO_PEERCRED: process, user and group (unix(7))."""


class Credentials(NamedTuple):
    """The process at the other end of a Unix socket, at the time it connected."""

    pid: int
    user: int
    group: int


def reset_on_close(sock: socket.socket) -> None:
    """Have the next `close` break a TCP connection: the other end sees an error, not an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))


def keep_unsent(sock: socket.socket, size: int) -> None:
    """Limit the bytes that a TCP connection takes before it can send them; others have none."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)


def credentials_of_peer(sock: socket.socket) -> Credentials:
    """Return the process at the other end of a Unix socket."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials(*_CREDENTIALS.unpack(raw))
