"""Decide how many processes, threads and channels an outgoing migration has."""

from __future__ import annotations

from dataclasses import dataclass

from ..guest.base import Machine
from ..transport.process import default_workers, processors
from .compression import Compression
from .multifd.plan import ChannelPlan, plan_channels
from .parameters import SendParameters
from .worker import Share

ENOUGH_FOR_THREADS = 4
"""Largest number of processors that compression threads of the transport process can keep busy."""


@dataclass(frozen=True)
class Topology:
    """The processes, threads and channels of one outgoing migration.

    `workers` is the number of processes that scan and encode besides the transport process; with 0
    that does it itself, and has `threads` to compress. `multifd` describes the channels besides the
    main one, each fed by a worker of its own; None if there are none.
    """

    workers: int
    threads: int = 1
    multifd: ChannelPlan | None = None

    @property
    def channels(self) -> int:
        """Return the number of channels besides the main one."""
        return 0 if self.multifd is None else self.multifd.channels

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
        return Topology(channels, multifd=plan_channels(channels, parameters, machine))
    workers = parameters.workers
    if workers is None and compression is not None:
        workers = processors() if processors() > ENOUGH_FOR_THREADS else 0
    elif workers is None:
        workers = default_workers()
    return Topology(workers, threads=processors())
