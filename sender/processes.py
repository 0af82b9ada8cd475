"""The sender's processes as one thing: workers, transport process, and the rings between them."""

from __future__ import annotations

from ..guest.base import Guest, block_layout
from ..transport.channel import Channel
from ..transport.counters import Counters
from ..transport.crew import Crew
from ..transport.process import Child, send_fd
from ..transport.ring import Ring, RingWriter
from .transport import SLOT_FLUSHED, TRANSPORT_COUNTERS, Flushed, TransportSetup, run_transport
from .worker import (
    SLOT_PIECE,
    WORKER_COUNTERS,
    StartRound,
    WorkerSetup,
    run_worker,
    slot_size,
)

RING_SLOTS = 8
CONTROL_SLOT_SIZE = 1 << 20


class Processes:
    """Starts, commands and stops the processes of one outgoing migration."""

    def __init__(self, guest: Guest, count: int, crew: Crew) -> None:
        self._guest = guest
        self._count = count
        self._crew = crew
        self._workers: list[Child] = []
        self._transport: Child | None = None
        self.limits = Counters.create(("max_bandwidth",))
        self._sent = Counters.create(TRANSPORT_COUNTERS)
        self._scanned = [Counters.create(WORKER_COUNTERS) for _ in range(count)]
        size = slot_size(guest.machine.page_size)
        self._rings = tuple(Ring.create(RING_SLOTS, size) for _ in range(count))
        self._control = Ring.create(RING_SLOTS, CONTROL_SLOT_SIZE)
        self._writer = RingWriter(self._control)
        self._marks = 0

    def start(self, section_id: int, channel: Channel, *, return_path: bool) -> None:
        """Start all processes, and wait until every worker has mapped RAM."""
        setup = TransportSetup(self._rings, self._control, self._sent, self.limits, return_path)
        self._transport = self._crew.start("vmferry-transport", run_transport, (setup,))
        layout = block_layout(self._guest.blocks)
        for index, ring in enumerate(self._rings):
            worker = WorkerSetup(index, self._count, section_id, ring, self._scanned[index])
            child = self._crew.start(f"vmferry-worker-{index}", run_worker, (worker, layout))
            self._workers.append(child)
            for block in self._guest.blocks:
                send_fd(child.connection, block.fd)
        for _ in self._workers:
            self._crew.wait_for(str)
        send_fd(self._transport.connection, channel.fileno())

    def start_round(self, command: StartRound) -> None:
        """Command every worker to begin; RoundSent will report the end."""
        for child in self._workers:
            child.connection.send(command)

    def command_transport(self, command: object) -> None:
        """Send a command to the transport process."""
        assert self._transport is not None
        self._transport.connection.send(command)

    def write(self, data: bytes) -> None:
        """Put bytes on the channel, behind all that was sent before."""
        for start in range(0, len(data), CONTROL_SLOT_SIZE):
            piece = data[start : start + CONTROL_SLOT_SIZE]
            self._slot()[: len(piece)] = piece
            self._writer.publish(len(piece), SLOT_PIECE, 0)

    def flush(self) -> None:
        """Wait until everything written so far was handed to the channel."""
        self._marks += 1
        self._slot()
        self._writer.publish(0, SLOT_FLUSHED, self._marks)
        self._crew.wait_for(Flushed)

    def _slot(self) -> memoryview:
        while (view := self._writer.try_acquire()) is None:
            self._crew.wait_fd(self._writer.free_fd)
        return view

    def sent(self, name: str) -> int:
        """A counter of the transport process."""
        return self._sent[name]

    def scanned(self, name: str) -> int:
        """A counter, summed over the workers."""
        return sum(counters[name] for counters in self._scanned)

    def close(self) -> None:
        """Give back everything that was shared with the processes, which have ended."""
        for ring in (*self._rings, self._control):
            ring.close()
        for counters in (*self._scanned, self._sent, self.limits):
            counters.close()
