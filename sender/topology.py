"""Decide how many processes and threads an outgoing migration has, and how its pages travel."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..guest.parts import Machine
from ..transport.compression import Compression
from ..transport.process import default_workers, processors
from ..transport.settings import WORKERS
from .mapped_ram.path import MappedPath
from .multifd.path import MultifdPath
from .multifd.plan import plan_channels
from .page_path import MainPath, PagePath
from .parameters import SendParameters
from .share import Share

ENOUGH_FOR_THREADS = 4
"""Largest number of processors that compression threads of the transport process can keep busy."""


@dataclass(frozen=True)
class Topology:
    """The processes and threads of one outgoing migration, and the way that pages take.

    `workers` is the number of processes that scan and encode besides the transport process; with 0
    that does it itself, and has `threads` to compress.
    """

    workers: int
    threads: int = 1
    path: PagePath = field(default_factory=MainPath)

    @property
    def shares(self) -> list[Share]:
        """Return the shares of RAM of the processes that scan."""
        count = max(self.workers, 1)
        return [Share(index, count) for index in range(count)]


def plan(parameters: SendParameters, compression: Compression | None, machine: Machine) -> Topology:
    """Return the topology that the user wants, completed by what suits processors and machine.

    Compression gets one worker per processor if there are more processors than threads could
    use.
    """
    channels = parameters.multifd_channels
    if channels is not None:
        return Topology(channels, path=MultifdPath(plan_channels(channels, parameters, machine)))
    workers = parameters.workers
    if parameters.mapped_ram:
        count = min(processors(), WORKERS.most) if workers is None else workers
        return Topology(count, path=MappedPath(count, machine, direct_io=parameters.direct_io))
    if workers is None and compression is not None:
        workers = processors() if processors() > ENOUGH_FOR_THREADS else 0
    elif workers is None:
        workers = default_workers()
    return Topology(workers, threads=processors())
