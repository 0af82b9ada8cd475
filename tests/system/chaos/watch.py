"""The heartbeats of both guests, and whether two guests ran.

A guest writes "PID COUNTER RUNNING" to its file ten times a second; the file's time of change says
when. Each beat is a fact of that moment: a guest that beats as running does run. So no tolerance is
needed: a source that beats as running later than the destination did is a second guest.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Beat:
    """Counter that a guest wrote at `time`, in seconds of the system's clock."""

    time: float
    pid: int
    counter: int
    running: bool


@dataclass
class Heart:
    """The beats of the guest at one side."""

    path: Path
    last: Beat | None = None
    first_run: Beat | None = None
    last_run: Beat | None = None
    pids: set[int] = field(default_factory=set)

    def look(self) -> Beat | None:
        """Read the file if it changed; returns the beat that is new."""
        try:
            with self.path.open(encoding="ascii") as file:
                changed = os.fstat(file.fileno()).st_mtime_ns / 1e9
                if self.last is not None and changed == self.last.time:
                    return None
                pid, counter, running = file.read().split()
        except (FileNotFoundError, ValueError):
            return None
        beat = self.last = Beat(changed, int(pid), int(counter), running == "1")
        self.pids.add(beat.pid)
        if beat.running:
            self.first_run = self.first_run or beat
            self.last_run = beat
        return beat


class Watch:
    """Looks at both hearts; `two` says when two guests were seen to run, if they were."""

    def __init__(self, folder: Path) -> None:
        self.source = Heart(folder / "source.beat")
        self.destination = Heart(folder / "destination.beat")
        self.two: str | None = None

    def look(self) -> None:
        """Read both files; to be called more often than guests beat."""
        self.destination.look()
        self.source.look()
        first = self.destination.first_run
        last = self.source.last_run
        if self.two is None and first is not None and last is not None:
            late = last.time - first.time
            if late > 0:
                self.two = f"the source ran {late:.3f} s after the destination had begun to"

    def heart(self, side: str) -> Heart:
        """Return the heart of one side."""
        return self.source if side == "source" else self.destination
