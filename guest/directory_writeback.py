"""Begins to write RAM files of an incoming guest back while the rest of it arrives.

`seal` waits for the disk while the guest stands still, and its source for an answer, a minute at
most. Left to itself, the system would keep much of RAM in memory until then.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable

EVERY = 1.0
"""Seconds from one time to the next."""
_ENDS_WITHIN = 1.0
"""Seconds that a disk may keep whoever stops this waiting."""
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE: begin only. It takes no error away from the fsync of `seal`."""
_libc = ctypes.CDLL(None)


class Writeback:
    """Goes on until `stop`. What it cannot do, `seal` does."""

    def __init__(self, fds: Iterable[int]) -> None:
        self._stopped = threading.Event()
        # They are the thread's own, since a slow disk may keep it in the middle of a call.
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
        """Begin no more."""
        self._stopped.set()
        self._thread.join(_ENDS_WITHIN)


def begin(fd: int) -> None:
    """Have the system begin to write back what is changed of a file, if it can."""
    _libc.sync_file_range(ctypes.c_int(fd), ctypes.c_int64(0), ctypes.c_int64(0), _WRITE)
