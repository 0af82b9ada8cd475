"""Decide how many processes and channels an incoming migration has, as `sender.topology` does."""

from __future__ import annotations

from dataclasses import dataclass

from ..transport.process import default_workers, processors
from ..transport.settings import WORKERS


@dataclass(frozen=True)
class Topology:
    """The processes and channels of one incoming migration.

    `workers` is the number of processes that apply the pages of the main channel; with 0 the
    transport process does that itself. `channels` is the number of multifd channels, each of which
    has a process of its own. `readers` is the number of processes that read a mapped-ram file.
    """

    workers: int
    channels: int
    readers: int

    @property
    def appliers(self) -> int:
        """Return the number of processes that apply pages of the main channel."""
        return max(self.workers, 1)


def plan(workers: int | None, channels: int | None) -> Topology:
    """Return the topology that the user wants; with None, the machine decides, and no multifd.

    With multifd next to nothing but zero pages is on the main channel, so it needs no workers.
    """
    readers = min(processors(), WORKERS.most) if workers is None else max(workers, 1)
    if workers is None:
        workers = 0 if channels else default_workers()
    return Topology(workers, channels or 0, readers)
