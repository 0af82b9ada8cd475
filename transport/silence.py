"""Measure how long the other host of a TCP connection has owed an acknowledgement.

A host that is gone does not acknowledge what was sent to it; one whose process is stopped, or reads
nothing, does, and it also answers probes of a full window. TCP_USER_TIMEOUT does not distinguish
these two. Source: tcp(7), TCP_INFO, and struct tcp_info of the kernel's linux/tcp.h.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios

GONE_AFTER = 60.0
"""Seconds without an acknowledgement after which the other host counts as gone."""
_INFO = struct.Struct("=3xB20xI28xI")
"""Fields of tcp_info, with all that precedes them.

`tcpi_probes` (of a window without room, since the last answer), `tcpi_unacked` (segments), and
`tcpi_last_ack_recv` (milliseconds).
"""


def unacknowledged(fd: int) -> int:
    """Return how many bytes of a socket its peer's system has not acknowledged yet."""
    left = array.array("i", [0])
    fcntl.ioctl(fd, termios.TIOCOUTQ, left)
    return left[0]


def silence(sock: socket.socket) -> float:
    """Return for how many seconds the other host has owed an acknowledgement, at most.

    The result is 0 if nothing is owed, and for sockets other than TCP. One probe alone does not
    count: a host that answers is sent no second one before it does.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0.0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    probes, segments, milliseconds = _INFO.unpack(info)
    return milliseconds / 1000 if segments or probes > 1 else 0.0
