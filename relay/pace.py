"""Bound by time what waits for the link: it prolongs the downtime of the guest.

What a relay has read and not sent has left the source, which then thinks that the link is faster
than it is, and pauses its guest while all of that is still to be sent. So a slow link gets small
blocks, and little of them in the buffer of its sockets. No clocks, no I/O.
"""

from __future__ import annotations

from ..transport.adaptive import Link
from .blocks import BLOCK_SIZE

BLOCK_SECONDS = 0.003
"""Seconds of the link that one block takes, about."""
UNSENT_SECONDS = 0.01
"""Seconds of the link for which bytes wait in the buffers of all its sockets, about."""
LEAST_BLOCK = BLOCK_SIZE // 8
"""Least limit for the bytes of a block: each costs some time, however small it is."""
LEAST_UNSENT, MOST_UNSENT = 1 << 16, 1 << 22
"""Limits for the bytes that wait in the buffer of one socket."""


class Pace:
    """The limits for what waits, at the present rate of the link.

    Until the rate is known, they are those of a fast link.
    """

    def __init__(self) -> None:
        self.block = BLOCK_SIZE
        """Limit for the bytes of a channel in one block."""
        self.unsent = MOST_UNSENT
        """Limit for the bytes that wait in the buffer of each socket of the link."""

    def sent(self, length: int, size: int, link: Link, connections: int) -> None:
        """Record that a block of `length` bytes left as `size` bytes.

        `link`: the speed of all connections together, of which there are so many.
        """
        seconds = max(link.seconds, link.limit)
        if seconds <= 0:
            return
        block = BLOCK_SECONDS / seconds * length / size
        self.block = _power_of_two(block, LEAST_BLOCK, BLOCK_SIZE)
        unsent = UNSENT_SECONDS / seconds / max(1, connections)
        self.unsent = _power_of_two(unsent, LEAST_UNSENT, MOST_UNSENT)


def _power_of_two(size: float, least: int, most: int) -> int:
    """Return a size rounded to a power of two, which does not change all the time."""
    bounded = max(least, min(int(size * 1.5), most))
    return 1 << (bounded.bit_length() - 1)
