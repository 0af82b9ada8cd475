"""Manage the receiver's processes: transport process, workers, and the rings between them.

With multifd, each channel has a process, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from ..guest.disks.image import Disk
from ..guest.handing_in import DestinationJob
from ..guest.mapping import block_layout
from ..guest.parts import RamBlock
from ..transport.channel import Channel
from ..transport.counters import Counters
from ..transport.crew import Crew
from ..transport.process import Child, preload, receive_fd, send_channel, send_fd, send_message
from ..transport.ring import Ring
from ..transport.shared import SharedFd
from .exchange import Continue, Dismissed, LetGo, OpenDisk, Promised, Released, StandBy
from .multifd.channel import ChannelSetup, run_channel
from .multifd.sync import Steps
from .slots import SLOT_SIZE
from .topology import Topology
from .transport import TRANSPORT_COUNTERS, TransportSetup, run_transport
from .worker import WORKER_COUNTERS, MapBlocks, WorkerSetup, run_worker

RING_SLOTS = 8

preload("vmferry.receiver.transport", "vmferry.receiver.worker", "vmferry.receiver.multifd.channel")


class Processes:
    """The processes of one incoming migration: it starts, commands and stops them.

    Without workers the transport process also applies pages.
    """

    def __init__(self, topology: Topology, crew: Crew, max_device_state: int | None) -> None:
        self._max_device_state = max_device_state
        self._crew = crew
        self._workers: list[Child] = []
        self._channels: list[Child] = []
        self._transport: Child | None = None
        self._steps = Steps.create(topology.channels) if topology.channels else None
        self._progress_fd = SharedFd.event()
        self._received = Counters.create(TRANSPORT_COUNTERS)
        self._applied = tuple(Counters.create(WORKER_COUNTERS) for _ in range(topology.appliers))
        self._rings = tuple(Ring.create(RING_SLOTS, SLOT_SIZE) for _ in range(topology.workers))

    def start(self) -> None:
        """Start all processes."""
        setup = TransportSetup(
            self._rings,
            self._applied,
            self._received,
            self._progress_fd,
            self._max_device_state,
            self._steps,
        )
        self._transport = self._crew.start("vmferry-transport", run_transport, (setup,))
        for index, ring in enumerate(self._rings):
            worker = WorkerSetup(ring, self._applied[index], self._progress_fd)
            self._workers.append(self._crew.start(f"vmferry-worker-{index}", run_worker, (worker,)))
        if self._steps is not None:
            for number, (go, counters) in enumerate(
                zip(self._steps.go, self._steps.counters, strict=True)
            ):
                channel = ChannelSetup(number, self._steps.signals, go, counters)
                name = f"vmferry-channel-{number}"
                self._channels.append(self._crew.start(name, run_channel, (channel,)))

    def attach(self, main: Channel, channels: Sequence[Channel]) -> None:
        """Hand the main channel to the transport process, and each other one to its own process.

        The others stay open there alone.
        """
        assert self._transport is not None
        send_channel(self._transport.connection, main)
        for child, channel in zip(self._channels, channels, strict=True):
            send_channel(child.connection, channel)
            channel.drop()

    def map_blocks(self, blocks: tuple[RamBlock, ...]) -> None:
        """Make every process that writes pages map RAM; they flow after `go_on`."""
        assert self._transport is not None
        appliers = [*(self._workers or [self._transport]), *self._channels]
        for child in appliers:
            send_message(child.connection, MapBlocks(block_layout(blocks)))
            for block in blocks:
                send_fd(child.connection, block.fd)
        for _ in appliers:
            self._crew.wait_for(str)

    def go_on(self) -> None:
        """Let the stream behind the list of RAM blocks flow."""
        self.command_transport(Continue())

    def open_disk(self, disk: Disk) -> None:
        """Have a disk written into its image."""
        assert self._transport is not None
        OpenDisk.send(self._transport.connection, disk)

    def stand_by(self, remover: Callable[[], None] | None) -> None:
        """Make the transport process remove the guest if this process dies before `let_go`."""
        if remover is not None:
            self.command_transport(StandBy(remover))

    def command_transport(self, command: object) -> None:
        """Send a command to the transport process."""
        assert self._transport is not None
        send_message(self._transport.connection, command)

    def receive_fd(self) -> int:
        """Return the descriptor that the transport process has announced."""
        assert self._transport is not None
        return receive_fd(self._transport.connection)

    def let_go(
        self,
        job: DestinationJob,
        finisher: Callable[[], None] | None,
        on_asked: Callable[[Connection], None],
    ) -> None:
        """Make the transport process leave the channel; no process is watched any more.

        With a `finisher`, the transport process stands by to end the handover if this process dies.
        `on_asked` is called with the connection on which that process answers, before it is read.
        """
        assert self._transport is not None
        self.command_transport(LetGo(job, finisher))
        on_asked(self._transport.connection)
        self._crew.wait_for(Released)
        self._crew.retire()

    def promised(self) -> None:
        """Tell the transport process that the source was sent the promise."""
        self._tell(Promised())

    def dismiss(self) -> None:
        """Tell the transport process to end: this process lives and does the rest itself."""
        self._tell(Dismissed())

    def _tell(self, command: object) -> None:
        """Send a command to a process that may have ended; if so, drop the command."""
        if self._transport is not None:
            with suppress(OSError):
                self.command_transport(command)

    def received(self, name: str) -> int:
        """Return a counter of the transport process."""
        return self._received[name]

    def applied(self, name: str) -> int:
        """Return a counter, summed over the workers."""
        return sum(counters[name] for counters in self._applied)

    def over_channels(self, name: str) -> int:
        """Return a counter, summed over the channels of multifd."""
        return 0 if self._steps is None else self._steps.total(name)

    def close(self) -> None:
        """Release everything that was shared with the processes, which have ended."""
        for ring in self._rings:
            ring.close()
        for counters in (*self._applied, self._received):
            counters.close()
        if self._steps is not None:
            self._steps.close()
        self._progress_fd.close()
