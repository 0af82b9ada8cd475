"""Start to write back the files of an incoming guest while the rest of it arrives.

`seal` waits for the disk while the guest is stopped, and its source waits for an answer, a minute
at most. Without this, the system would keep much of RAM in memory until then.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable

EVERY = 1.0
"""Seconds between two rounds of write-back."""
_ENDS_WITHIN = 1.0
"""Longest time, in seconds, that `stop` waits for a slow disk."""
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE: only start; the fsync of `seal` still reports all errors."""
_libc = ctypes.CDLL(None)


class Writeback:
    """A thread that starts write-back until `stop`; `seal` writes the rest."""

    def __init__(self, fds: Iterable[int]) -> None:
        self._stopped = threading.Event()
        # Duplicates for the thread alone, because a slow disk may block it in the middle of a call.
        self._fds = [os.dup(fd) for fd in fds]
        self._thread = threading.Thread(target=self._run, name="vmferry-writeback", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(EVERY):
            for fd in self._fds:
                begin(fd)
        for fd in self._fds:
            os.close(fd)

    def stop(self) -> None:
        """Stop starting write-back."""
        self._stopped.set()
        self._thread.join(_ENDS_WITHIN)


def begin(fd: int, start: int = 0, length: int = 0) -> None:
    """Ask the system to start writing back what changed in a part of a file, if it can.

    The length 0 means everything from `start` on.
    """
    _libc.sync_file_range(ctypes.c_int(fd), ctypes.c_int64(start), ctypes.c_int64(length), _WRITE)
