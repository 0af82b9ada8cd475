"""The sending transport process: move ring slots to the channel, in order, within the bandwidth.

The process does not interpret what it moves. All slots of a round are sent before the coordinator
learns that the round is done, so no round overtakes another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ..guest.tracking.errors import TrackingError
from ..protocol.errors import StreamError
from ..protocol.handover import Peer, Word
from ..protocol.return_path import Pong, ReturnPathReader, Shut
from ..transport.channel import Channel, ChannelError
from ..transport.counters import Counters
from ..transport.crew import reporting
from ..transport.process import receive_channel, send_message
from ..transport.ring import Ring, RingReader
from ..transport.shared import Readiness, wait_readable
from .chunks import MappedBlock
from .exchange import Flushed, Greeted, LetGo, Released, RoundSent
from .outlet import Outlet
from .scanners import WorkerSetup, direct_sink
from .sinks import SLOT_END_OF_ROUND, SLOT_FLUSHED, pieces_on_wire
from .sources import StartRound
from .worker import Worker


@dataclass(frozen=True)
class TransportSetup:
    """The setup of the transport process: the rings of the workers and of the coordinator.

    `others`: a ring for each source that is not scanned by the workers. `limits` holds
    `max_bandwidth` in bytes per second (0: no limit). `scan` is what this process must scan itself
    if there are no workers.
    """

    rings: tuple[Ring, ...]
    others: tuple[Ring, ...]
    scan: WorkerSetup | None
    control: Ring
    counters: Counters
    limits: Counters
    return_path: bool


class Group:
    """The rings of one source; a round of it is over when each ring has ended it."""

    def __init__(self, rings: Sequence[Ring]) -> None:
        self._rings = [RingReader(ring) for ring in rings]
        self.in_round = list(self._rings)

    def ended(self, ring: RingReader) -> bool:
        """Record that a ring has ended the round, and return whether that was the last one."""
        self.in_round.remove(ring)
        if self.in_round:
            return False
        self.in_round = list(self._rings)
        return True


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
        self._groups = [Group(setup.rings), *(Group([ring]) for ring in setup.others)]
        self._outlet = Outlet(channel, connection.fileno(), setup.counters, self._limit)
        self._answers = ReturnPathReader() if setup.return_path else None
        self._peer = Peer.STOCK
        self._greeted = False
        self._released = False
        self._commands = Readiness(connection.fileno())
        self._worker: Worker | None = None
        if setup.scan is not None:
            sink = direct_sink(connection, setup.scan, self._send, self._round_sent)
            self._worker = setup.scan.worker(blocks, sink)

    def run(self) -> None:
        """Move slots until the coordinator commands LetGo.

        Raises EOFError if the coordinator is gone.
        """
        while not self._released:
            if self._commands.now():
                self._obey(self._connection.recv())
                continue
            moved = [
                self._move_slot(group, ring)
                for group in self._groups
                for ring in list(group.in_round)
            ]
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
        in_round = (ring for group in self._groups for ring in group.in_round)
        fds = [ring.filled_fd for ring in (*in_round, self._control)]
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

    def _move_slot(self, group: Group, ring: RingReader) -> bool:
        slot = ring.try_take()
        if slot is None:
            return False
        if slot.kind != SLOT_END_OF_ROUND:
            self._send(slot.view, slot.kind)
            ring.release()
            return True
        number = slot.tag
        ring.release()
        if group.ended(ring):
            self._round_sent(number)
        return True

    def _move_control_slot(self) -> bool:
        slot = self._control.try_take()
        if slot is None:
            return False
        if slot.kind == SLOT_FLUSHED:
            send_message(self._connection, Flushed())
        else:
            self._send(slot.view, slot.kind)
        self._control.release()
        return True

    def _send(self, view: memoryview, kind: int) -> None:
        self._outlet.send(*pieces_on_wire(view, kind))

    def _limit(self) -> int | None:
        return self._setup.limits["max_bandwidth"] or None


def run_transport(connection: Connection, setup: TransportSetup) -> None:
    """Take the channel and move slots until the coordinator is gone; entry point of the process."""
    blocks = [] if setup.scan is None else setup.scan.map_blocks(connection)
    send_message(connection, "ready")
    channel = receive_channel(connection)
    channel.answered = setup.return_path
    prefix = "the destination's answer is damaged: "
    try:
        with (
            reporting(connection, ChannelError, TrackingError),
            reporting(connection, StreamError, prefix=prefix),
        ):
            Transport(connection, setup, channel, blocks).run()
    finally:
        channel.abort()
