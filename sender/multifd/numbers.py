"""Number the packets of all channels without a gap, though each channel has its own process."""

from __future__ import annotations

import fcntl

import numpy as np

from ...transport.shared import SharedFd

_BYTES = 8


class PacketNumbers:
    """The counter of packets, shared by the processes that have its memory.

    Source: QEMU numbers packets over all channels, so a reader of kept channels can check whether
    one of them is missing.
    """

    def __init__(self, memory: SharedFd) -> None:
        self._memory = memory
        self._next = np.frombuffer(memory.map(_BYTES), np.uint64)

    @staticmethod
    def memory() -> SharedFd:
        """Return memory for a counter that begins at 0."""
        return SharedFd.memory("vmferry-packets", _BYTES)

    def take(self, count: int) -> range:
        """Return the next `count` numbers, which no other process gets."""
        fcntl.lockf(self._memory.fileno(), fcntl.LOCK_EX)
        try:
            first = int(self._next[0])
            self._next[0] = first + count
        finally:
            fcntl.lockf(self._memory.fileno(), fcntl.LOCK_UN)
        return range(first, first + count)
