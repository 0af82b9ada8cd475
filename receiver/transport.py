"""The receiving transport process: reads the channel into ring slots and finds the runs of pages.

The stream reader checks everything; a slot that reaches a worker holds only pages that belong
inside their RAM blocks. What is not a page goes to the coordinator.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from ..protocol import events
from ..protocol.errors import StreamError
from ..protocol.reader import StreamReader
from ..protocol.return_path import pong, shut
from ..protocol.stream import CommandType, SectionType
from ..transport.channel import Channel, ChannelError
from ..transport.counters import Counters
from ..transport.crew import Failed
from ..transport.process import receive_fd
from ..transport.ring import Ring, RingWriter, wait_readable
from ..transport.shared import SharedFd
from .worker import RUN, SLOT_RUNS, TABLE_BYTES, TABLE_RUNS

RECEIVE_BYTES = 1 << 20
SLOT_SIZE = TABLE_BYTES + RECEIVE_BYTES + (128 << 10)
"""A table, what is read at once, and the incomplete record kept from the slot before."""
DESCRIPTION_GRACE = 2.0
"""Seconds to wait, after the end of the stream, for a description that may not come."""

TRANSPORT_COUNTERS = ("transferred",)


@dataclass(frozen=True)
class TransportSetup:
    """One ring and one set of counters a worker; `progress_fd`: eventfd, raised at each slot."""

    rings: tuple[Ring, ...]
    worker_counters: tuple[Counters, ...]
    counters: Counters
    progress_fd: SharedFd


@dataclass(frozen=True)
class Arrived:
    """Report: events that are not pages, in order."""

    events: tuple[events.Event, ...]


@dataclass(frozen=True)
class Complete:
    """Report: the stream ended well and every page was applied."""


@dataclass(frozen=True)
class Continue:
    """Command: RAM is mapped, pages may flow."""


@dataclass(frozen=True)
class Answer:
    """Command: tell the source, if it listens, whether the guest was loaded."""

    loaded: bool


@dataclass(frozen=True)
class Answered:
    """Report: the answer was given, or nobody had asked for one."""


class Slots:
    """The workers' rings in turn, with a barrier where one page would be in flight twice."""

    def __init__(self, connection: Connection, setup: TransportSetup) -> None:
        self._connection = connection
        self._writers = [RingWriter(ring) for ring in setup.rings]
        self._worker_counters = setup.worker_counters
        self._progress_fd = setup.progress_fd.fileno()
        self._published = 0
        self._next = 0
        self._in_flight: list[npt.NDArray[np.bool_]] = []
        self._page_size = 4096

    def set_blocks(self, blocks: tuple[events.RamBlock, ...], page_size: int) -> None:
        """Learn how many pages the blocks have."""
        self._page_size = page_size
        self._in_flight = [np.zeros(block.length // page_size, np.bool_) for block in blocks]

    def acquire(self) -> npt.NDArray[np.uint8]:
        """A slot of the worker whose turn it is."""
        return np.frombuffer(self._acquire(self._writers[self._next]), np.uint8)

    def publish(self, runs: list[events.PageRun], view: npt.NDArray[np.uint8], used: int) -> None:
        """Hand the acquired slot, with these runs, to its worker."""
        if len(self._writers) > 1:
            self._keep_order(runs)
        table = view[:TABLE_BYTES].view(RUN)
        for row, run in enumerate(runs):
            table[row] = self._row(run)
        self._writers[self._next].publish(used, SLOT_RUNS, len(runs))
        self._published += 1
        self._next = (self._next + 1) % len(self._writers)

    def _row(self, run: events.PageRun) -> tuple[int, ...]:
        first, last, count = int(run.offsets[0]), int(run.offsets[-1]), len(run.offsets)
        contiguous = last - first == (count - 1) * self._page_size and bool(
            (np.diff(run.offsets.astype(np.int64)) == self._page_size).all()
        )
        position = TABLE_BYTES + run.position
        plain = run.data is not None
        return (first, position, count, run.block_index, run.fill, plain, contiguous, 0)

    def _keep_order(self, runs: list[events.PageRun]) -> None:
        numbers = [(run.offsets // np.uint64(self._page_size)).astype(np.intp) for run in runs]
        seen = zip(runs, numbers, strict=True)
        if any(self._in_flight[run.block_index][which].any() for run, which in seen):
            self.barrier()
        for run, which in zip(runs, numbers, strict=True):
            self._in_flight[run.block_index][which] = True

    def barrier(self) -> None:
        """Wait until the workers have applied everything published so far."""
        while sum(counters["slots"] for counters in self._worker_counters) < self._published:
            self._wait(self._progress_fd)
            os.eventfd_read(self._progress_fd)
        for pages_of_block in self._in_flight:
            pages_of_block[:] = False

    def _acquire(self, writer: RingWriter) -> memoryview:
        while (view := writer.try_acquire()) is None:
            self._wait(writer.free_fd)
        return view

    def _wait(self, fd: int) -> set[int]:
        ready = set(wait_readable([fd, self._connection.fileno()]))
        if self._connection.fileno() in ready:
            # Nothing is commanded while slots move: the coordinator is gone or has given up.
            raise EOFError
        return ready


class Transport:
    """Reads the stream to its end, then answers the source as commanded."""

    def __init__(self, connection: Connection, setup: TransportSetup, channel: Channel) -> None:
        self._connection = connection
        self._setup = setup
        self._channel = channel
        self._slots = Slots(connection, setup)
        self._reader = StreamReader()
        self._return_path = False

    def run(self) -> None:
        """Receive until the stream ends."""
        kept = b""
        while not self._reader.finished:
            view = self._slots.acquire()
            body = view.data[TABLE_BYTES:]
            body[: len(kept)] = kept
            used = self._fill(body, len(kept))
            if used == len(kept):
                self._handle(self._reader.close())
                break
            found, consumed = self._reader.parse(body[:used])
            kept = bytes(body[consumed:used])
            self._deliver(found, view, TABLE_BYTES + used)
        self._slots.barrier()
        self._connection.send(Complete())
        self._answer(self._connection.recv())

    def _fill(self, body: memoryview, start: int) -> int:
        """Read what the channel has, at least something; how far `body` is filled then."""
        end = min(len(body), start + RECEIVE_BYTES)
        used = start
        while used < end:
            timeout = None if used == start else 0.0
            if timeout is None and self._reader.awaiting_description:
                timeout = DESCRIPTION_GRACE
            fds = [self._channel.fileno(), self._connection.fileno()]
            ready = wait_readable(fds, timeout)
            if self._connection.fileno() in ready:
                raise EOFError
            if not ready:
                break
            count = self._channel.recv_into(body[used:end])
            if count == 0:
                break
            used += count
            self._setup.counters.add("transferred", count)
        return used

    def _deliver(self, found: list[events.Event], view: npt.NDArray[np.uint8], used: int) -> None:
        """Page runs to the worker, everything else to the coordinator; the slot goes out once."""
        others: list[events.Event] = []
        runs: list[events.PageRun] = []
        for event in found:
            if isinstance(event, events.PageRun):
                runs.append(event)
            else:
                others.append(event)
        self._handle(others)
        for first in range(0, len(runs), TABLE_RUNS):
            if first:
                whole, view = view, self._slots.acquire()
                view[TABLE_BYTES:used] = whole[TABLE_BYTES:used]
            self._slots.publish(runs[first : first + TABLE_RUNS], view, used)

    def _handle(self, found: list[events.Event]) -> None:
        told = []
        for event in found:
            if isinstance(event, events.Command):
                self._obey(event)
            elif _matters(event):
                told.append(event)
        if not told:
            return
        self._connection.send(Arrived(tuple(told)))
        for event in told:
            if isinstance(event, events.RamBlocks):
                command = self._connection.recv()
                assert isinstance(command, Continue)
                self._slots.set_blocks(event.blocks, self._reader.page_size)

    def _obey(self, command: events.Command) -> None:
        if command.command == CommandType.OPEN_RETURN_PATH:
            if not self._channel.bidirectional:
                raise ChannelError("the source wants answers, but the channel goes one way")
            self._return_path = True
        elif command.command == CommandType.PING and self._return_path:
            self._channel.send([memoryview(pong(int.from_bytes(command.data, "big")))])

    def _answer(self, command: Answer) -> None:
        if self._return_path:
            self._channel.send([memoryview(shut(0 if command.loaded else 1))])
        self._channel.close()
        self._connection.send(Answered())


def _matters(event: events.Event) -> bool:
    """Whether the coordinator has any use for it."""
    if isinstance(event, events.RamSection):
        return event.kind == SectionType.START
    return not isinstance(event, (events.EndOfRam, events.Footer, events.MultifdFlush))


def run_transport(connection: Connection, setup: TransportSetup) -> None:
    """Process entry: take the channel, receive until the end or until the coordinator goes away."""
    channel = Channel.from_fd(receive_fd(connection))
    try:
        Transport(connection, setup, channel).run()
    except (StreamError, ChannelError) as error:
        connection.send(Failed(str(error)))
    finally:
        channel.abort()
