"""The receiving transport process: read the channel into ring slots and find the runs of pages.

A stream in zstd frames is decompressed first. The stream reader checks everything, so a slot that
reaches a worker holds only pages that belong inside their RAM blocks. Everything else goes to the
coordinator.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..guest.handing_in import DestinationJob, hand_in
from ..protocol import events
from ..protocol.errors import StreamError
from ..protocol.formats.zstd import is_compressed
from ..protocol.handover import Peer, Word
from ..protocol.reader import StreamReader
from ..protocol.return_path import pong
from ..protocol.wire.kept import Part
from ..protocol.wire.marks import CommandType, SectionType
from ..protocol.words import word_on_wire
from ..transport.channel import Channel, ChannelError
from ..transport.counters import Counters
from ..transport.crew import Failed
from ..transport.process import receive_channel, send_fd, send_message
from ..transport.ring import Ring
from ..transport.shared import Readiness, SharedFd
from ..transport.spill import FileError, SentFile, Spill
from .compression import Inflater
from .refusal import refuse
from .slots import DATA_START, TABLE_RUNS, DirectSlots, RingSlots, Run, Slots
from .stored import StoredFrame
from .worker import Applier, MapBlocks

RECEIVE_BYTES = 2 << 20
"""Largest number of bytes read into a slot at a time."""
STORED_HEAD = 12
"""Bytes of a zstd frame that show whether it is stored."""
HEAD_BYTES = 4
"""Bytes at the start of a stream that show whether it is compressed."""

NO_PAGES = (
    ", before its first page; if the source uses several connections, switch that off there "
    "(migrate_set_capability multifd off)"
)
"""The hint for a multifd source, which sends pages on other connections: this stream has none."""

ENDING_GRACE = 0.05
"""Seconds of silence that show a whole stream to be complete, if its source waits for an answer.

The guest stands still for as long.
"""

CLOSE_GRACE = 5.0
"""Seconds of silence that show a whole stream to be complete, if its source wants no answer.

Such a source closes the connection.
"""

DESCRIPTION_GRACE = 2.0
"""Seconds of silence after which a stream that may have ended without a description is given up.

This applies if its source waits for an answer.
"""

UNCONFIRMED = (
    "the stream has no description of its devices (machine option suppress-vmdesc), so nothing "
    "confirms where it ends, and a source that waits for an answer gets none: migrate without the "
    "capability return-path, or to a file that you convert or send on"
)

UNKNOWN_END = (
    "nothing tells where the stream ends: it describes no devices, and what follows is not all "
    "zeros; convert it with the option --length, and receive that"
)

TRANSPORT_COUNTERS = ("transferred",)

Command = TypeVar("Command")


@dataclass(frozen=True)
class TransportSetup:
    """The setup of the transport process: one ring and one set of counters per worker.

    `progress_fd` is an eventfd that is raised after each applied slot. Without rings this process
    applies pages itself, and counts them in the one set of counters. `max_device_state` is in
    bytes.
    """

    rings: tuple[Ring, ...]
    applied: tuple[Counters, ...]
    counters: Counters
    progress_fd: SharedFd
    max_device_state: int | None


@dataclass(frozen=True)
class Arrived:
    """Report: events that are not pages, in order.

    Payloads that are too large for a message are in files, numbered from 0 on in the order of their
    reports (Spilled).
    """

    events: tuple[events.Event, ...]


@dataclass(frozen=True)
class Spilled:
    """Report: the descriptor of a file with payloads of the next events follows."""


@dataclass(frozen=True)
class Complete:
    """Report: the stream ended well and every page was applied.

    `return_path`: the source wants an answer. `framed`: the stream was compressed.
    """

    peer: Peer
    return_path: bool
    framed: bool


@dataclass(frozen=True)
class Continue:
    """Command: every worker has mapped RAM, pages may flow."""


@dataclass(frozen=True)
class StandBy:
    """Command: call `remove` if the coordinator dies before it commands LetGo."""

    remove: Callable[[], None]


@dataclass(frozen=True)
class Dismissed:
    """Command: end, because the coordinator lives and does the rest itself."""


@dataclass(frozen=True)
class LetGo:
    """Command: leave the channel, because the guest is whole and its handover begins elsewhere.

    `finisher` completes the guest if the coordinator dies during the handover. It is None if
    another process holds the guest, or if the guest dies with the coordinator.
    """

    job: DestinationJob
    finisher: Callable[[], None] | None


@dataclass(frozen=True)
class Released:
    """Report: this process leaves the channel alone for as long as the coordinator lives."""


@dataclass(frozen=True)
class Promised:
    """Command: the source was promised that the guest is whole; record it."""


class Transport:
    """The reader of one stream: it reads to the end, then leaves the channel as commanded."""

    def __init__(self, connection: Connection, setup: TransportSetup, channel: Channel) -> None:
        self._connection = connection
        self._setup = setup
        self._channel = channel
        self._applier = Applier(setup.applied[0])
        self._slots: Slots = DirectSlots(self._applier.apply)
        if setup.rings:
            self._slots = RingSlots(connection, setup.rings, setup.applied, setup.progress_fd)
        self._input = Readiness(channel.fileno(), connection.fileno())
        self._commands = Readiness(connection.fileno())
        self._reader = StreamReader(keep=Spill, max_device_state=setup.max_device_state)
        self._spills: list[Spill] = []
        self._kept = b""
        self._return_path = False
        self._peer = Peer.STOCK
        self._framed = False
        self._any_pages = False
        self._remove: Callable[[], None] | None = None

    def run(self) -> None:
        """Receive until the stream ends."""
        slot = self._slots.acquire()
        used = self._fill(slot.data[DATA_START:], HEAD_BYTES)
        self._framed = is_compressed(slot.data[DATA_START : DATA_START + used])
        if self._framed:
            self._take_compressed(slot.data[DATA_START : DATA_START + used])
        else:
            self._take_plain(slot, used)
        self._end()
        self._slots.barrier()
        complete = Complete(self._peer, self._return_path, self._framed)
        send_message(self._connection, complete)
        self._let_go(self._command(LetGo))

    def remove_unfinished(self) -> None:
        """Remove the guest once the coordinator has died, unless it dismisses this process first.

        After LetGo there is nothing to remove.
        """
        with suppress(EOFError, ConnectionError):
            while self._remove is not None:
                self._command(object)
        if self._remove is not None:
            self._remove()

    def _command(self, kind: type[Command] | tuple[type[Command], ...]) -> Command:
        """Return the next command of this kind. Raises EOFError when none will arrive."""
        while True:
            command: object = self._connection.recv()
            if isinstance(command, StandBy):
                self._remove = command.remove
            elif isinstance(command, (Dismissed, LetGo)):
                self._remove = None
            if isinstance(command, Dismissed):
                raise EOFError
            if isinstance(command, kind):
                return command

    def _end_of_input(self) -> list[events.Event]:
        """Return the last events. Raises StreamError if the stream has not ended."""
        try:
            return self._reader.close()
        except StreamError as error:
            if not self._any_pages:
                error.message += NO_PAGES
            raise

    def _end(self) -> None:
        """Handle the last events of the stream, when nothing more arrives. Raises StreamError."""
        found = self._end_of_input()
        behind = self._reader.behind
        if behind and not stat.S_ISREG(os.fstat(self._channel.fileno()).st_mode):
            # The guest may have forged the end, and the source been cut off behind it.
            message = f"{behind} bytes behind what looked like the end of the stream"
            raise StreamError(message, offset=self._reader.end)
        if self._reader.guessed:
            raise StreamError(UNKNOWN_END, offset=self._reader.end)
        if self._return_path and not any(isinstance(e, events.Description) for e in found):
            raise StreamError(UNCONFIRMED, offset=self._reader.end)
        for event in found:
            refuse(event)
        self._handle(found)

    def _let_go(self, command: LetGo) -> None:
        """Leave the channel to the guest's holder, and take over if that dies.

        Without a finisher the holder cannot be replaced, and this process is done.
        """
        if command.finisher is None:
            self._channel.drop()
            send_message(self._connection, Released())
            return
        send_message(self._connection, Released())
        promised = False
        try:
            while isinstance(self._connection.recv(), Promised):
                promised = True
        except (EOFError, ConnectionError):
            take_over(self._channel, replace(command.job, promised=promised), command.finisher)
        else:
            self._channel.drop()

    def _take_plain(self, slot: npt.NDArray[np.uint8], used: int) -> None:
        while used:
            self._take(slot, used)
            slot = self._slots.acquire()
            used = self._fill(slot.data[DATA_START:])

    def _take_compressed(self, head: memoryview) -> None:
        inflater = Inflater(len(self._setup.rings), self._take)
        try:
            used = len(head)
            inflater.space[:used] = head
            while used:
                inflater.filled(used)
                self._settle(inflater)
                while (frame := inflater.begin_stored()) is not None:
                    self._fill_frame(frame)
                    inflater.end_stored(frame)
                    if inflater.ended:
                        return
                    if not frame.good:
                        break
                    # Only enough to tell whether the next frame is stored too; more would have to
                    # be copied.
                    inflater.filled(self._fill(inflater.space[:STORED_HEAD], STORED_HEAD))
                self._settle(inflater)
                if inflater.ended:
                    return
                # A frame may turn out to be damaged up to its end.
                used = self._fill(inflater.space)
            inflater.close()
        finally:
            inflater.stop()

    def _settle(self, inflater: Inflater) -> None:
        """Hand on what is under way, unless more has arrived: the stream may be at its end."""
        while not inflater.idle and not self._input.now():
            inflater.finish_one()

    def _fill_frame(self, frame: StoredFrame) -> None:
        """Read the whole frame, as long as it arrives and has the expected layout."""
        while frame.awaited:
            if self._connection.fileno() in self._input.ready(None):
                raise EOFError
            count = self._channel.recv_into(*frame.missing)
            if count == 0:
                return
            frame.filled(count)
            self._setup.counters.add("transferred", count)

    def _fill(self, view: memoryview, wanted: int = 1) -> int:
        """Read what the channel has, but wait for `wanted` bytes; return how many were read."""
        used, end = 0, min(len(view), RECEIVE_BYTES)
        while used < end:
            ready = self._input.ready(0.0)
            if not ready and used < wanted:
                ready = self._wait()
            if self._connection.fileno() in ready:
                raise EOFError
            if not ready:
                break
            count = self._channel.recv_into(view[used:end])
            if count == 0:
                break
            used += count
            self._setup.counters.add("transferred", count)
        return used

    def _silence(self) -> float:
        """Return the seconds of silence behind a whole stream that show it to be complete."""
        if not self._return_path:
            return CLOSE_GRACE
        # A source that confirms accepts no promise before it has sent everything.
        return 0.0 if self._peer is Peer.CONFIRMING else ENDING_GRACE

    def _wait(self) -> set[int]:
        """Wait for more; return an empty set if nothing arrives and the stream is whole.

        Raises StreamError if the stream may have ended, but nothing confirms it.
        """
        if self._reader.keeping_from is None:
            return self._input.ready(None)
        if self._reader.whole:
            return self._input.ready(self._silence())
        ready = self._input.ready(DESCRIPTION_GRACE)
        if ready or not self._return_path:
            return ready or self._input.ready(None)
        kept = self._reader.kept
        abort = word_on_wire(Word.ABORT, framed=False)
        if kept.read(max(0, kept.size - len(abort)), len(abort)) == abort:
            raise ChannelError("the source took the guest back")
        if self._reader.bare:
            raise StreamError(UNCONFIRMED, offset=self._reader.position)
        return self._input.ready(None)

    def _take(self, slot: npt.NDArray[np.uint8], used: int) -> bool:
        """Parse the next `used` bytes of the stream, from DATA_START on; return True to go on."""
        if self._commands.now():
            raise EOFError
        start, end = DATA_START - len(self._kept), DATA_START + used
        slot[start:DATA_START] = np.frombuffer(self._kept, np.uint8)
        found, consumed = self._reader.parse(slot.data[start:end])
        self._kept = bytes(slot.data[start + consumed : end])
        self._deliver(found, slot, start, end)
        return True

    def _deliver(
        self, found: list[events.Event], slot: npt.NDArray[np.uint8], start: int, end: int
    ) -> None:
        """Send page runs to the worker and everything else to the coordinator."""
        others: list[events.Event] = []
        runs: list[Run] = []
        for event in found:
            if isinstance(event, (events.PageRun, events.XbzrleRun)):
                self._any_pages = True
                runs.append(event)
            else:
                refuse(event)
                others.append(event)
        self._handle(others)
        for first in range(0, len(runs), TABLE_RUNS):
            self._slots.publish(runs[first : first + TABLE_RUNS], slot, start, end)

    def _handle(self, found: list[events.Event]) -> None:
        told: list[events.Event] = []
        for event in found:
            if isinstance(event, events.Command):
                self._obey(event)
            elif isinstance(event, events.Description):
                # The parsed form may be nested deeper than a message between processes can be.
                told.append(replace(event, json={}))
            elif isinstance(event, events.DeviceSection) and isinstance(event.payload, Part):
                told.append(replace(event, payload=self._spilled(event.payload)))
            elif _matters(event):
                told.append(event)
        if not told:
            return
        send_message(self._connection, Arrived(tuple(told)))
        for event in told:
            if isinstance(event, events.RamBlocks):
                self._wait_mapped()
                self._slots.set_blocks(event.blocks, self._reader.page_size)

    def _spilled(self, payload: Part) -> Part:
        """Return the payload as a message carries it, after sending its file descriptor once."""
        spill = payload.kept
        assert isinstance(spill, Spill)
        if spill not in self._spills:
            self._spills.append(spill)
            send_message(self._connection, Spilled())
            send_fd(self._connection, spill.fileno())
        return Part(SentFile(self._spills.index(spill)), payload.start, payload.size)

    def _wait_mapped(self) -> None:
        command = self._command((MapBlocks, Continue))
        if isinstance(command, MapBlocks):
            self._applier.map(self._connection, command)
            self._command(Continue)

    def _obey(self, command: events.Command) -> None:
        if command.command == CommandType.OPEN_RETURN_PATH:
            if not self._channel.bidirectional:
                raise ChannelError("the source wants answers, but the channel goes one way")
            self._return_path = True
        elif command.command == CommandType.PING and self._return_path:
            value = int.from_bytes(command.data, "big")
            if value == Word.HELLO:
                self._peer = Peer.CONFIRMING
                self._send(pong(Word.CONFIRMS))
            self._send(pong(value))

    def _send(self, answer: bytes) -> None:
        self._channel.send(memoryview(answer), stop_fd=self._connection.fileno())


class Finisher:
    """A guest whose coordinator died, with a call that completes it from any process."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish

    def complete(self, *, running: bool) -> None:
        """Complete the guest; whether it runs was settled before the promise."""
        del running
        self._finish()


def take_over(channel: Channel, job: DestinationJob, finisher: Callable[[], None]) -> None:
    """End the handover of a guest whose coordinator died."""
    ours, theirs = Pipe()
    with ours, theirs:
        hand_in(os.dup(channel.fileno()), job, Finisher(finisher), theirs)
    channel.drop()


def _matters(event: events.Event) -> bool:
    """Return whether the coordinator needs the event."""
    if isinstance(event, events.RamSection):
        return event.kind == SectionType.START
    return not isinstance(event, (events.EndOfRam, events.Footer, events.MultifdFlush))


def run_transport(connection: Connection, setup: TransportSetup) -> None:
    """Take the channel and receive until the stream ends or the coordinator is gone."""
    channel = receive_channel(connection)
    transport = Transport(connection, setup, channel)
    # The coordinator may die at any moment.
    with suppress(EOFError, ConnectionError):
        try:
            transport.run()
        except (StreamError, ChannelError) as error:
            send_message(connection, Failed(str(error)))
        except FileError as error:
            send_message(connection, Failed(f"{error.filename}: {error.strerror}"))
        finally:
            channel.abort()
    transport.remove_unfinished()
