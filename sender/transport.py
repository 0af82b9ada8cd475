"""The sending transport process: move ring slots to the channel, in order, within the bandwidth.

The process does not interpret what it moves. All slots of a round are sent before the coordinator
learns that the round is done, so no round overtakes another.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ..protocol.errors import StreamError
from ..protocol.formats import zstd
from ..protocol.handover import Peer, Word
from ..protocol.return_path import Pong, ReturnPathReader, Shut
from ..transport.channel import Channel, ChannelError
from ..transport.counters import Counters
from ..transport.crew import Failed
from ..transport.process import processors, receive_channel, send_message
from ..transport.rate import RateLimiter
from ..transport.ring import Ring, RingReader
from ..transport.shared import Readiness, wait_readable
from .adaptive import Pool
from .compressed_slots import FramedDirectSlots
from .exchange import Flushed, Greeted, LetGo, Released, RoundSent
from .slots import SLOT_END_OF_ROUND, SLOT_FLUSHED, SLOT_STORED, DirectSlots, Slots
from .worker import MappedBlock, StartRound, Worker, WorkerSetup, make_choice, map_blocks

TRANSPORT_COUNTERS = ("transferred", "busy_ns")


@dataclass(frozen=True)
class TransportSetup:
    """The setup of the transport process: the rings of the workers and of the coordinator.

    `limits` holds `max_bandwidth` in bytes per second (0: no limit). `scan` is what this process
    must scan itself if there are no workers.
    """

    rings: tuple[Ring, ...]
    scan: WorkerSetup | None
    control: Ring
    counters: Counters
    limits: Counters
    return_path: bool


class Transport:
    """The loop that sends slots from the rings; without workers, it also scans `blocks`."""

    def __init__(
        self,
        connection: Connection,
        setup: TransportSetup,
        channel: Channel,
        blocks: list[MappedBlock],
    ) -> None:
        self._connection = connection
        self._setup = setup
        self._channel = channel
        self._control = RingReader(setup.control)
        self._workers = [RingReader(ring) for ring in setup.rings]
        self._in_round = list(self._workers)
        self._limiter = RateLimiter(self._limit(), time.monotonic)
        self._answers = ReturnPathReader() if setup.return_path else None
        self._peer = Peer.STOCK
        self._greeted = False
        self._released = False
        self._commands = Readiness(connection.fileno())
        self._worker: Worker | None = None
        if setup.scan is not None:
            size = zstd.compressed_bound(setup.scan.slot_size)
            slots = DirectSlots(size, connection, self._send, self._round_sent)
            self._worker = Worker(setup.scan, blocks, _compressed(slots, setup.scan))

    def run(self) -> None:
        """Move slots until the coordinator commands LetGo.

        Raises EOFError if the coordinator is gone.
        """
        while not self._released:
            if self._commands.now():
                self._obey(self._connection.recv())
                continue
            moved = [self._move_worker_slot(ring) for ring in list(self._in_round)]
            if not self._move_control_slot() and not any(moved):
                self._wait()

    def _obey(self, command: LetGo | StartRound) -> None:
        if isinstance(command, StartRound):
            assert self._worker is not None
            self._worker.run_round(command)
            return
        answers = b"" if self._answers is None else self._answers.rest
        self._channel.drop()
        self._released = True
        send_message(self._connection, Released(answers))

    def _round_sent(self, number: int) -> None:
        send_message(self._connection, RoundSent(number))

    def _wait(self) -> None:
        fds = [ring.filled_fd for ring in (*self._in_round, self._control)]
        fds.append(self._connection.fileno())
        if self._answers is not None:
            fds.append(self._channel.fileno())
        ready = wait_readable(fds)
        if self._answers is not None and self._channel.fileno() in ready:
            self._read_answers()

    def _read_answers(self) -> None:
        assert self._answers is not None
        buffer = bytearray(4096)
        count = self._channel.recv_into(memoryview(buffer))
        if count == 0:
            raise ChannelError("the destination closed the connection; its log says why")
        self._take_answers(self._answers, bytes(buffer[:count]))

    def _take_answers(self, reader: ReturnPathReader, data: bytes) -> None:
        """Report how the destination answers HELLO.

        Raises ChannelError if an answer means that the migration failed.
        """
        while messages := reader.feed(data):
            data = b""
            for message in messages:
                if isinstance(message, Shut):
                    what = "could not load the guest; its log says why"
                    if message.status == 0:
                        what = "answered before it had the whole guest"
                    raise ChannelError(f"the destination {what}")
                if message == Pong(Word.CONFIRMS):
                    self._peer = Peer.CONFIRMING
                elif message == Pong(Word.HELLO) and not self._greeted:
                    self._greeted = True
                    send_message(self._connection, Greeted(self._peer))

    def _move_worker_slot(self, ring: RingReader) -> bool:
        slot = ring.try_take()
        if slot is None:
            return False
        if slot.kind != SLOT_END_OF_ROUND:
            self._send(slot.view, slot.kind == SLOT_STORED)
            ring.release()
            return True
        number = slot.tag
        ring.release()
        self._in_round.remove(ring)
        if not self._in_round:
            self._in_round = list(self._workers)
            self._round_sent(number)
        return True

    def _move_control_slot(self) -> bool:
        slot = self._control.try_take()
        if slot is None:
            return False
        if slot.kind == SLOT_FLUSHED:
            send_message(self._connection, Flushed())
        else:
            self._send(slot.view, slot.kind == SLOT_STORED)
        self._control.release()
        return True

    def _send(self, view: memoryview, stored: bool) -> None:
        started = time.monotonic_ns()
        self._limiter.set_limit(self._limit())
        while (delay := self._limiter.delay()) > 0:
            if wait_readable([self._connection.fileno()], delay):
                # Only the coordinator's death or stop command interrupts a round.
                raise EOFError
            self._limiter.set_limit(self._limit())
        pieces = zstd.stored(view) if stored else [view]
        self._channel.send(*pieces, stop_fd=self._connection.fileno())
        sent = sum(map(len, pieces))
        self._limiter.sent(sent)
        self._setup.counters.add("transferred", sent)
        self._setup.counters.add("busy_ns", time.monotonic_ns() - started)

    def _limit(self) -> int | None:
        return self._setup.limits["max_bandwidth"] or None


def _compressed(slots: DirectSlots, setup: WorkerSetup) -> Slots:
    """Return slots that compress with threads, or `slots` itself without compression."""
    if setup.compression is None:
        return slots
    threads = processors()
    choice = make_choice(setup, setup.compression, Pool(threads, depth=2))
    return FramedDirectSlots(slots, setup.slot_size, choice, threads)


def run_transport(connection: Connection, setup: TransportSetup) -> None:
    """Take the channel and move slots until the coordinator is gone; entry point of the process."""
    blocks = [] if setup.scan is None else map_blocks(connection, setup.scan)
    send_message(connection, "ready")
    channel = receive_channel(connection)
    channel.answered = setup.return_path
    try:
        Transport(connection, setup, channel, blocks).run()
    except ChannelError as error:
        send_message(connection, Failed(str(error)))
    except StreamError as error:
        send_message(connection, Failed(f"the destination's answer is damaged: {error}"))
    finally:
        channel.abort()
