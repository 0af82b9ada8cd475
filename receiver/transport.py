"""The receiving transport process: reads the channel into ring slots and finds the runs of pages.

The stream reader checks everything; a slot that reaches a worker holds only pages that belong
inside their RAM blocks. What is not a page goes to the coordinator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from ..transport.process import receive_channel, send_message
from ..transport.ring import Ring
from ..transport.shared import Readiness, SharedFd
from .slots import RECEIVE_BYTES, TABLE_BYTES, TABLE_RUNS, DirectSlots, RingSlots, Run, Slots
from .worker import Applier, MapBlocks

DESCRIPTION_GRACE = 2.0
"""Seconds to wait, after the end of the stream, for a description that may not come."""

CLOSE_GRACE = 5.0
"""Seconds to wait for the source to close the connection, after it was told that all is well."""

TRANSPORT_COUNTERS = ("transferred",)


@dataclass(frozen=True)
class TransportSetup:
    """One ring and one set of counters a worker; `progress_fd`: eventfd, raised at each slot.

    Without rings this process applies pages itself, and counts them in the one set of counters.
    """

    rings: tuple[Ring, ...]
    applied: tuple[Counters, ...]
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
    """Command: every worker has mapped RAM, pages may flow."""


@dataclass(frozen=True)
class Answer:
    """Command: tell the source, if it listens, that the guest was loaded."""


@dataclass(frozen=True)
class Answered:
    """Report: the answer was given, or nobody had asked for one."""


class Transport:
    """Reads the stream to its end, then answers the source as commanded."""

    def __init__(self, connection: Connection, setup: TransportSetup, channel: Channel) -> None:
        self._connection = connection
        self._setup = setup
        self._channel = channel
        self._applier = Applier(setup.applied[0])
        self._slots: Slots = DirectSlots(self._applier.apply)
        if setup.rings:
            self._slots = RingSlots(connection, setup.rings, setup.applied, setup.progress_fd)
        self._input = Readiness(channel.fileno(), connection.fileno())
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
        send_message(self._connection, Complete())
        command = self._connection.recv()
        assert isinstance(command, Answer)
        self._answer()

    def _fill(self, body: memoryview, start: int) -> int:
        """Read what the channel has, at least something; how far `body` is filled then."""
        end = min(len(body), start + RECEIVE_BYTES)
        used = start
        while used < end:
            timeout = None if used == start else 0.0
            if timeout is None and self._reader.awaiting_description:
                timeout = DESCRIPTION_GRACE
            ready = self._input.ready(timeout)
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
        runs: list[Run] = []
        for event in found:
            if isinstance(event, (events.PageRun, events.XbzrleRun)):
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
        told: list[events.Event] = []
        for event in found:
            if isinstance(event, events.Command):
                self._obey(event)
            elif isinstance(event, events.Description):
                # Parsed, it may be nested deeper than a message between processes can be.
                told.append(replace(event, json={}))
            elif _matters(event):
                told.append(event)
        if not told:
            return
        send_message(self._connection, Arrived(tuple(told)))
        for event in told:
            if isinstance(event, events.RamBlocks):
                self._wait_mapped()
                self._slots.set_blocks(event.blocks, self._reader.page_size)

    def _wait_mapped(self) -> None:
        command: MapBlocks | Continue = self._connection.recv()
        if isinstance(command, MapBlocks):
            self._applier.map(self._connection, command)
            command = self._connection.recv()
        assert isinstance(command, Continue)

    def _obey(self, command: events.Command) -> None:
        if command.command == CommandType.OPEN_RETURN_PATH:
            if not self._channel.bidirectional:
                raise ChannelError("the source wants answers, but the channel goes one way")
            self._return_path = True
        elif command.command == CommandType.PING and self._return_path:
            self._channel.send(memoryview(pong(int.from_bytes(command.data, "big"))))

    def _answer(self) -> None:
        """Tell the source that the guest is here, and see that it closes the connection.

        Without the answer it lets its guest run on: if it has left before, or breaks the connection
        instead of closing it, the guest may not start here.
        """
        if self._return_path:
            if self._source_closed(0.0):
                raise ChannelError(f"{self._channel.name}: the source left before the answer")
            self._channel.send(memoryview(shut(0)))
            self._source_closed(CLOSE_GRACE)
        self._channel.close()
        send_message(self._connection, Answered())

    def _source_closed(self, timeout: float) -> bool:
        """Whether it does within `timeout` seconds. Raises ChannelError when it breaks off."""
        ready = self._input.ready(timeout)
        if self._connection.fileno() in ready:
            raise EOFError
        return bool(ready) and self._channel.recv_into(memoryview(bytearray(1))) == 0


def _matters(event: events.Event) -> bool:
    """Whether the coordinator has any use for it."""
    if isinstance(event, events.RamSection):
        return event.kind == SectionType.START
    return not isinstance(event, (events.EndOfRam, events.Footer, events.MultifdFlush))


def run_transport(connection: Connection, setup: TransportSetup) -> None:
    """Process entry: take the channel, receive until the end or until the coordinator goes away."""
    channel = receive_channel(connection)
    try:
        Transport(connection, setup, channel).run()
    except (StreamError, ChannelError) as error:
        send_message(connection, Failed(str(error)))
    finally:
        channel.abort()
