"""Manage the sender's processes: workers, transport process, and the rings between them."""

from __future__ import annotations

from ..guest.base import Guest, block_layout
from ..protocol.formats.zstd import compressed_bound
from ..protocol.handover import Peer, Word
from ..protocol.words import ping, word_on_wire
from ..transport.channel import Channel
from ..transport.counters import Counters
from ..transport.crew import Crew
from ..transport.process import (
    Child,
    default_workers,
    preload,
    processors,
    send_channel,
    send_fd,
    send_message,
)
from ..transport.ring import Ring, RingWriter
from ..transport.settings import TrackerKind
from .compression import Compression, Framer
from .exchange import Flushed, Greeted, LetGo, Released
from .slots import SLOT_FLUSHED, SLOT_PIECE
from .tracking import Tracking, begin_tracking
from .transport import TRANSPORT_COUNTERS, TransportSetup, run_transport
from .worker import WORKER_COUNTERS, StartRound, WorkerSetup, run_worker, slot_size

RING_SLOTS = 8
CONTROL_PIECE = 1 << 20
"""Bytes that the coordinator puts in one slot of its ring."""
ENOUGH_FOR_THREADS = 4
"""Largest number of processors that compression threads of the transport process can keep busy."""

preload("vmferry.sender.transport", "vmferry.sender.worker")


def worker_count(requested: int | None, compression: Compression | None) -> int:
    """Return the number of worker processes, which the machine decides if none is requested.

    Compression gets one worker per processor if there are more processors than threads could
    use.
    """
    if requested is not None:
        return requested
    if compression is None:
        return default_workers()
    return processors() if processors() > ENOUGH_FOR_THREADS else 0


class Processes:
    """The processes of one outgoing migration: it starts, commands and stops them.

    `count` is the number of workers; with 0 the transport process also scans and compresses.
    """

    def __init__(
        self,
        guest: Guest,
        count: int,
        crew: Crew,
        compression: Compression | None,
        limits: Counters,
    ) -> None:
        self._guest = guest
        self._compression = compression
        self._framer = Framer()
        self._layout = block_layout(guest.blocks)
        self._crew = crew
        self._tracking: Tracking | None = None
        self._scanners: list[Child] = []
        self._transport: Child | None = None
        self.limits = limits
        """The limits that the processes read; closed with what else is shared with them."""
        self._sent = Counters.create(TRANSPORT_COUNTERS)
        self._scanned = [Counters.create(WORKER_COUNTERS) for _ in range(max(count, 1))]
        self._slot_size = slot_size(guest.machine.page_size)
        room = compressed_bound(self._slot_size)
        self._rings = tuple(Ring.create(RING_SLOTS, room) for _ in range(count))
        self._control = Ring.create(RING_SLOTS, compressed_bound(CONTROL_PIECE))
        self._writer = RingWriter(self._control)

    def begin_tracking(self, wanted: TrackerKind) -> None:
        """Choose how dirty pages are found; to be called before `start`. Raises MigrationError."""
        self._tracking = begin_tracking(self._guest, wanted)

    @property
    def tracker(self) -> str | None:
        """Return the name of the way in which dirty pages are found, if that is chosen yet."""
        return None if self._tracking is None else self._tracking.kind.value

    def dirty_bytes(self) -> int | None:
        """Return how much RAM is dirty now, or None if only reading all of it would tell."""
        return None if self._tracking is None else self._tracking.dirty_bytes()

    def start(self, section_id: int, channel: Channel, *, return_path: bool) -> None:
        """Start all processes, and wait until each one has mapped what it needs."""
        tracking = self._tracking or Tracking(self._guest)
        parts = [
            WorkerSetup(
                index,
                len(self._scanned),
                section_id,
                self._slot_size,
                counters,
                self._sent,
                self.limits,
                self._layout,
                tracking.for_workers(),
                self._compression,
            )
            for index, counters in enumerate(self._scanned)
        ]
        setup = TransportSetup(
            self._rings,
            None if self._rings else parts[0],
            self._control,
            self._sent,
            self.limits,
            return_path,
        )
        transport = self._crew.start("vmferry-transport", run_transport, (setup,))
        self._transport = transport
        workers = [
            self._crew.start(f"vmferry-worker-{part.index}", run_worker, (part, ring))
            for part, ring in zip(parts, self._rings, strict=False)
        ]
        self._scanners = workers or [transport]
        for child in self._scanners:
            for fd in tracking.fds():
                send_fd(child.connection, fd)
        for _ in {transport, *workers}:
            self._crew.wait_for(str)
        send_channel(transport.connection, channel)

    def start_round(self, command: StartRound) -> None:
        """Start a pass over all RAM; RoundSent reports its end. Raises GuestError."""
        if self._tracking is not None:
            self._tracking.begin_round()
        for child in self._scanners:
            send_message(child.connection, command)

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
        """Make the transport process leave the channel, and return its unused bytes of answers.

        No process of this migration is needed or watched afterwards.
        """
        self.command_transport(LetGo())
        answers = self._crew.wait_for(Released).answers
        self._crew.retire()
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
        """Return a counter of the transport process."""
        return self._sent[name]

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
        for ring in (*self._rings, self._control):
            ring.close()
        for counters in (*self._scanned, self._sent, self.limits):
            counters.close()
