"""Adds up the CPU time of a process and all that it starts, also of those that are gone.

The kernel reaps the children of vmferry's fork server, so that nobody learns what they have used:
their times are read now and then while they live. What one uses after the last look is lost, less
than INTERVAL.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

INTERVAL = 0.02
"""Seconds from one look to the next."""
_SEARCH = 10
"""The looks after which new processes are searched, which takes longer than a look."""
_TICK = os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """The CPU time of this process and its descendants, without that of a guest.

    `guest` returns the id of the guest's process, or 0.
    """

    def __init__(self, guest: Callable[[], int]) -> None:
        self._guest = guest
        self._seen: dict[int, float] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample the CPU time regularly while the block runs."""
        thread = threading.Thread(target=self._look_again, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def spent(self) -> float:
        """Return the seconds so far."""
        with self._lock:
            self._search()
            return sum(self._seen.values())

    def _look_again(self) -> None:
        looks = 0
        while not self._done.wait(INTERVAL):
            with self._lock:
                looks += 1
                if looks % _SEARCH == 0:
                    self._search()
                else:
                    self._look()

    def _search(self) -> None:
        me = psutil.Process()
        for child in [me, *me.children(recursive=True)]:
            self._seen.setdefault(child.pid, 0.0)
        self._seen.pop(self._guest(), None)
        self._look()

    def _look(self) -> None:
        for pid in self._seen:
            try:
                stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
            except (FileNotFoundError, ProcessLookupError):
                continue
            # The name of the process, in parentheses, may hold spaces.
            fields = stat.rpartition(")")[2].split()
            self._seen[pid] = (int(fields[11]) + int(fields[12])) / _TICK
