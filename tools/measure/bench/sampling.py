"""Samples the memory that the two ends of a migration have beyond the guest's.

What counts is the proportional set size (PSS) of all processes of an end: a page that n processes
map counts 1/n in each. Mappings of guest RAM and the processes of a synthetic guest do not count.
To read it, the kernel goes through all page tables: a run that is sampled is not timed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ....guest.synthetic_memory import RAM_NAME, ROM_NAME
from .memory import NAMES
from .results import Beyond

INTERVAL = 0.05
"""Seconds between two samples."""
_GUESTS = tuple(f"/memfd:{name}" for name in (*NAMES, RAM_NAME, ROM_NAME))
_GUEST_PROCESS = "vmferry.guest.synthetic_process"
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$")


def beyond_guest(smaps: Iterable[str]) -> int:
    """Return the PSS in bytes of all mappings but those of guest RAM, of `/proc/PID/smaps`."""
    counts, kib = True, 0
    for line in smaps:
        if line.startswith("Pss:"):
            kib += int(line.split()[1]) if counts else 0
        elif (mapping := _MAPPING.match(line)) is not None:
            counts = not mapping[1].startswith(_GUESTS)
    return kib << 10


def _of_end(pid: int) -> int:
    """Return the bytes of a process and its descendants, as far as they still exist."""
    try:
        process = psutil.Process(pid)
        everyone = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_of_process(each) for each in everyone)


def _of_process(process: psutil.Process) -> int:
    try:
        if _GUEST_PROCESS in process.cmdline():
            return 0
        with Path(f"/proc/{process.pid}/smaps").open(encoding="utf-8") as smaps:
            return beyond_guest(smaps)
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return 0


class Sampler:
    """The largest samples of both ends, which `watch` keeps in `beyond`."""

    def __init__(self) -> None:
        self.beyond = Beyond(0, 0)

    @contextmanager
    def watch(self, source: int, destination: int) -> Iterator[None]:
        """Sample the processes of these ids, and their descendants, meanwhile."""
        done = threading.Event()
        thread = threading.Thread(target=self._sample, args=(source, destination, done))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _sample(self, source: int, destination: int, done: threading.Event) -> None:
        while not done.wait(INTERVAL):
            ends = (_of_end(source), _of_end(destination))
            self.beyond = Beyond(
                max(self.beyond.source, ends[0]), max(self.beyond.destination, ends[1])
            )
