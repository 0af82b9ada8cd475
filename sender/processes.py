"""Manage the sender's processes: workers, transport process, and the rings between them."""

from __future__ import annotations

from collections.abc import Sequence

from ..guest.base import Guest
from ..guest.mapping import block_layout
from ..protocol.formats.zstd import compressed_bound
from ..protocol.handover import Peer, Word
from ..protocol.words import ping, word_on_wire
from ..transport.channel import Channel
from ..transport.compression import Compression, Framer
from ..transport.counters import Counters
from ..transport.crew import Crew
from ..transport.process import (
    Child,
    preload,
    send_channel,
    send_fd,
    send_message,
)
from ..transport.ring import Ring, RingWriter
from ..transport.settings import TrackerKind
from .exchange import Flushed, Greeted, LetGo, Released, RoundSent
from .outlet import OUTLET_COUNTERS
from .record_writer import slot_size
from .scanners import WorkerSetup
from .sinks import SLOT_FLUSHED, SLOT_PIECE
from .sources import StartRound
from .topology import Topology
from .tracking import Tracking, begin_tracking
from .transport import TransportSetup, run_transport
from .worker import WORKER_COUNTERS

RING_SLOTS = 8
CONTROL_PIECE = 1 << 20
"""Bytes that the coordinator puts in one slot of its ring."""

preload("vmferry.sender.transport", "vmferry.sender.scanners")


class Processes:
    """The processes of one outgoing migration: it starts, commands and stops them.

    Without workers the transport process also scans and compresses.
    """

    def __init__(
        self,
        guest: Guest,
        topology: Topology,
        crew: Crew,
        compression: Compression | None,
        limits: Counters,
    ) -> None:
        self._guest = guest
        self._topology = topology
        self._compression = compression
        self._framer = Framer()
        self._crew = crew
        self._tracking: Tracking | None = None
        self._scanners: list[Child] = []
        self._transport: Child | None = None
        self._workers: list[Child] = []
        self._feeders: list[Child] = []
        """The workers with a channel of their own."""
        self._section_id = 0
        self.limits = limits
        """The limits that the processes read; closed with what else is shared with them."""
        self._sent = Counters.create(OUTLET_COUNTERS)
        self._scanned = [Counters.create(WORKER_COUNTERS) for _ in topology.shares]
        room = compressed_bound(slot_size(guest.machine.page_size))
        self._rings = tuple(Ring.create(RING_SLOTS, room) for _ in range(topology.workers))
        self._more_rings: list[Ring] = []
        self._control = Ring.create(RING_SLOTS, compressed_bound(CONTROL_PIECE))
        self._writer = RingWriter(self._control)

    def add_ring(self, slots: int, slot_size: int) -> Ring:
        """Return a ring for a source whose process is not one of the workers.

        To be called before `start`. The transport process sends its slots in rounds of their own.
        """
        ring = Ring.create(slots, slot_size)
        self._more_rings.append(ring)
        return ring

    @property
    def sent_counters(self) -> Counters:
        """Return the counters of the transport process."""
        return self._sent

    def begin_tracking(self, wanted: TrackerKind) -> None:
        """Choose how dirty pages are found; to be called before `start`. Raises MigrationError."""
        self._tracking = begin_tracking(self._guest, wanted)

    @property
    def tracker(self) -> str | None:
        """Return the name of the way in which dirty pages are found, if that is chosen yet."""
        return None if self._tracking is None else self._tracking.kind.value

    def dirty_bytes(self) -> int | None:
        """Return how much RAM is dirty now, or None if only reading all of it would show that."""
        return None if self._tracking is None else self._tracking.dirty_bytes()

    def start(
        self, section_id: int, channel: Channel, channels: Sequence[Channel], *, return_path: bool
    ) -> None:
        """Start all processes, and wait until each one has mapped what it needs.

        `channels` are those of the workers, if they do not send over the main one.
        """
        self._section_id = section_id
        tracking = self._tracking or Tracking(self._guest)
        parts = self._worker_setups(section_id, tracking)
        transport_setup = TransportSetup(
            self._rings,
            tuple(self._more_rings),
            None if self._rings else parts[0],
            self._control,
            self._sent,
            self.limits,
            return_path,
        )
        transport = self._crew.start("vmferry-transport", run_transport, (transport_setup,))
        self._transport = transport
        self._workers = [
            self._start_worker(part, ring) for part, ring in zip(parts, self._rings, strict=False)
        ]
        self._scanners = self._workers or [transport]
        for child in self._scanners:
            for fd in tracking.fds():
                send_fd(child.connection, fd)
        for _ in {transport, *self._workers}:
            self._crew.wait_for(str)
        send_channel(transport.connection, channel)
        self._feeders = self._workers[: len(channels)]
        for worker, own in zip(self._feeders, channels, strict=True):
            send_channel(worker.connection, own)

    def _worker_setups(self, section_id: int, tracking: Tracking) -> list[WorkerSetup]:
        layout = block_layout(self._guest.blocks)
        return [
            WorkerSetup(
                share,
                section_id,
                counters,
                self._sent,
                self.limits,
                layout,
                tracking.for_workers(),
                self._compression,
                self._topology.threads,
            )
            for share, counters in zip(self._topology.shares, self._scanned, strict=True)
        ]

    def _start_worker(self, setup: WorkerSetup, ring: Ring) -> Child:
        run, more = self._topology.path.worker()
        return self._crew.start(f"vmferry-worker-{setup.share.index}", run, (setup, ring, *more))

    def run_round(self, command: StartRound) -> None:
        """Make a pass over all RAM; everything of it was handed to the channels afterwards.

        Raises GuestError.
        """
        if self._tracking is not None:
            self._tracking.begin_round()
        path = self._topology.path
        if head := path.round_head(self._section_id):
            # The workers' records must not overtake the head of the piece that they are in.
            self.write(head)
            self.flush()
        for child in self._scanners:
            send_message(child.connection, command)
        self._crew.wait_for(RoundSent)
        self.write(path.round_tail(self._section_id))

    def command_transport(self, command: object) -> None:
        """Send a command to the transport process."""
        assert self._transport is not None
        send_message(self._transport.connection, command)

    def write(self, data: bytes) -> None:
        """Write bytes to the channel, behind everything that was sent before."""
        for start in range(0, len(data), CONTROL_PIECE):
            piece = self._framed(data[start : start + CONTROL_PIECE])
            self._slot()[: len(piece)] = piece
            self._writer.publish(len(piece), SLOT_PIECE, 0)

    def framed(self, data: bytes) -> bytes:
        """Return these bytes as they go on the wire: in frames where pages are compressed."""
        starts = range(0, len(data), CONTROL_PIECE)
        return b"".join(self._framed(data[start : start + CONTROL_PIECE]) for start in starts)

    def _framed(self, piece: bytes) -> bytes:
        if self._compression is None:
            return piece
        return self._framer.frame(piece, self._compression.level or 1)

    def word(self, value: Word) -> bytes:
        """Return a word of the handover as it goes on the wire."""
        return word_on_wire(value, framed=self._compression is not None)

    def greet(self, timeout: float) -> Peer:
        """Wait for the destination's answer to HELLO, and return how it takes part in the handover.

        It answers after everything that was sent before. Raises SilenceError after `timeout`
        seconds.
        """
        self.write(ping(Word.HELLO))
        return self._crew.wait_for(Greeted, timeout).peer

    def let_go(self) -> bytes:
        """Make the processes leave the channels; return the unused bytes of answers.

        No process of this migration is needed or watched afterwards.
        """
        self.command_transport(LetGo())
        answers = self._crew.wait_for(Released).answers
        self._crew.retire()
        for worker in self._feeders:
            send_message(worker.connection, LetGo())
        return answers

    def flush(self) -> None:
        """Wait until everything written so far was handed to the channel."""
        self._slot()
        self._writer.publish(0, SLOT_FLUSHED, 0)
        self._crew.wait_for(Flushed)

    def _slot(self) -> memoryview:
        while (view := self._writer.try_acquire()) is None:
            self._crew.wait_fd(self._writer.free_fd)
        return view

    def sent(self, name: str) -> int:
        """Return a counter of OUTLET_COUNTERS over all channels.

        The time spent sending is that of the main channel and of the average other one: channels
        are used at the same time.
        """
        own = sum(counters[name] for counters in self._scanned)
        if name == "busy_ns":
            own //= max(len(self._feeders), 1)
        return self._sent[name] + own

    def scanned(self, name: str) -> int:
        """Return a counter, summed over the workers."""
        return sum(counters[name] for counters in self._scanned)

    def levels(self) -> tuple[int, ...]:
        """Return the present compression level of each process that scans."""
        return tuple(counters["level"] for counters in self._scanned)

    def close(self) -> None:
        """Release everything that was shared with the processes, which have ended."""
        if self._tracking is not None:
            self._tracking.close()
        self._writer.close()
        for ring in (*self._rings, *self._more_rings, self._control):
            ring.close()
        for counters in (*self._scanned, self._sent, self.limits):
            counters.close()
        self._topology.path.close()
