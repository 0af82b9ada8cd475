"""Define the parts of carriers of both directions: sockets to QEMU, and how they are stopped.

A carrier is a process between a QEMU and a channel. The command keeps duplicates of both of its
ends, so that the death of one of the two processes breaks nothing by itself.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from ...transport.counters import Counters
from ...transport.shared import SharedFd

COUNTERS = ("transferred", "busy_ns", "raw_bytes", "compressed_bytes", "level")
"""Counters of a carrier: bytes on the channel, nanoseconds spent on sending, and of compression."""
LIMITS = ("max_bandwidth",)
"""Limits that a carrier keeps to, in bytes per second; 0: none."""
BUFFER = 1 << 20
"""Bytes that may wait in each direction between QEMU and the carrier, as far as Linux allows."""


@dataclass(frozen=True)
class Ends:
    """The descriptors and counters that a carrier shares with its command.

    `stream`: the socket to QEMU; `stop`: an eventfd that tells the carrier to break everything.
    """

    stream: SharedFd
    stop: SharedFd
    counters: Counters
    limits: Counters

    def close(self) -> None:
        """Close the command's descriptors."""
        self.stream.close()
        self.stop.close()
        self.counters.close()
        self.limits.close()


def new_ends() -> tuple[Ends, socket.socket]:
    """Return the ends for a carrier, and the socket that QEMU is to have."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    stop = SharedFd.event()
    counters, limits = Counters.create(COUNTERS), Counters.create(LIMITS)
    return Ends(SharedFd(ours.detach()), stop, counters, limits), theirs


@dataclass(frozen=True)
class Passed:
    """Report: QEMU has closed its end, and all that it wrote was handed to the channel.

    `answered`: the destination had answered, and QEMU had read that.
    """

    answered: bool


@dataclass(frozen=True)
class Close:
    """Command: close the channel in order, as the guest has left."""


@dataclass(frozen=True)
class Closed:
    """Report: the channel was closed in order."""


@dataclass(frozen=True)
class Loaded:
    """Report: QEMU has answered, or has closed its end; the channel is left alone from now on.

    `status`: 0 if QEMU loaded the guest, None without an answer. `stopped`: the stream says that
    the guest was stopped before it migrated.
    """

    status: int | None
    stopped: bool
