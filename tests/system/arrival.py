"""Find out when the kernel took in a packet, which a busy reader sees later."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Iterable
from itertools import pairwise

_SO_TIMESTAMPNS = 35
"""Linux: a message of ancillary data with the time of arrival (socket(7), asm-generic/socket.h)."""
_TIMESPEC = struct.Struct("@ll")


def note_arrivals(sock: socket.socket) -> None:
    """Have the kernel note when each packet arrives, for `receive`."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def receive(sock: socket.socket) -> tuple[float, bytes]:
    """Return the next packet and when it arrived, in seconds of the system's clock."""
    packet, ancillary, _, _ = sock.recvmsg(2048, socket.CMSG_SPACE(_TIMESPEC.size))
    [(_, _, data)] = ancillary
    seconds, nanoseconds = _TIMESPEC.unpack(data)
    return seconds + nanoseconds / 1e9, packet


class Pauses:
    """Times of arrival of several tries, beside the pauses in milliseconds that should be there.

    A busy machine makes some pauses of a try longer, and never one shorter. So the shortest of all
    tries counts, and may be nearly twice as long as it should.
    """

    TRIES = 10

    def __init__(self, wanted: Iterable[int]) -> None:
        self._wanted = [pause / 1000 for pause in wanted][1:]
        self._shortest = [math.inf] * len(self._wanted)

    def add(self, times: list[float]) -> None:
        """Take in the times of one try. No pause may be shorter than it should."""
        pauses = [after - at for at, after in pairwise(times)]
        self._shortest = [min(both) for both in zip(self._shortest, pauses, strict=True)]
        pairs = zip(self._shortest, self._wanted, strict=True)
        assert all(pause > wanted - 0.01 for pause, wanted in pairs), str(self)

    def as_wanted(self) -> bool:
        """Return whether each pause was once near what it should be."""
        pairs = zip(self._shortest, self._wanted, strict=True)
        return all(pause < 1.9 * wanted for pause, wanted in pairs)

    def __str__(self) -> str:
        return f"shortest pauses {self._shortest}, wanted {self._wanted}"
