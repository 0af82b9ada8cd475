"""The receiving transport process: read the channel into ring slots and find the runs of pages.

A stream in zstd frames is decompressed first. The stream reader checks everything, so a slot that
reaches a worker holds only pages that belong inside their RAM blocks. Everything else goes to the
coordinator.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from ..protocol.errors import StreamError
from ..protocol.events import Event
from ..protocol.formats.zstd import is_compressed
from ..protocol.reader import StreamReader
from ..transport.channel import Channel, ChannelError
from ..transport.counters import Counters
from ..transport.crew import Failed
from ..transport.direct import position
from ..transport.process import receive_channel, send_message
from ..transport.ring import Ring
from ..transport.shared import SharedFd
from ..transport.spill import FileError, Spill
from .answers import Answers
from .compression import Inflater
from .delivery import Delivery
from .disks import DiskWriter
from .end_of_stream import EndOfStream
from .exchange import Commands, Complete, LetGo
from .frames import take_frames
from .handover import let_go
from .input import Input
from .multifd.sync import Steps, SyncPoints
from .slots import DATA_START, TABLE_RUNS, DirectSlots, RingSlots, Slots
from .worker import Applier

HEAD_BYTES = 4
"""Bytes at the start of a stream that show whether it is compressed."""

MOST_EVENTS = 4 * TABLE_RUNS
"""Events that are read before the coordinator's commands are looked at again.

A slot can hold 200,000 pings, which take seconds.
"""

TRANSPORT_COUNTERS = ("transferred", "disk_bytes")


@dataclass(frozen=True)
class TransportSetup:
    """The setup of the transport process: one ring and one set of counters per worker.

    `progress_fd` is an eventfd that is raised after each applied slot. Without rings this process
    applies pages itself, and counts them in the one set of counters. `max_device_state` is in
    bytes. `steps`: those with the channels of multifd, if there are any.
    """

    rings: tuple[Ring, ...]
    applied: tuple[Counters, ...]
    counters: Counters
    progress_fd: SharedFd
    max_device_state: int | None
    steps: Steps | None = None


class Transport:
    """The reader of one stream: it reads to the end, then leaves the channel as commanded."""

    def __init__(
        self, connection: Connection, setup: TransportSetup, channel: Channel, commands: Commands
    ) -> None:
        self._connection = connection
        self._setup = setup
        self._channel = channel
        self._commands = commands
        applier = Applier(setup.applied[0])
        self._slots: Slots = DirectSlots(applier.apply)
        if setup.rings:
            self._slots = RingSlots(connection, setup.rings, setup.applied, setup.progress_fd)
        self._reader = StreamReader(keep=Spill, max_device_state=setup.max_device_state)
        self._answers = Answers(connection, channel)
        self._end = EndOfStream(channel, self._reader, self._answers)
        self._input = Input(connection, channel, setup.counters, self._end)
        self._delivery = Delivery(
            connection,
            commands,
            reader=self._reader,
            answers=self._answers,
            slots=self._slots,
            applier=applier,
            disks=DiskWriter(connection, commands, setup.counters),
        )
        self._points: SyncPoints | None = None
        if setup.steps is not None:
            self._points = SyncPoints(connection, setup.steps, self._slots.barrier)
        self._kept = b""

    def run(self) -> None:
        """Receive until the stream ends."""
        slot = self._slots.acquire()
        used = self._input.fill(slot.data[DATA_START:], HEAD_BYTES)
        framed = is_compressed(slot.data[DATA_START : DATA_START + used])
        self._delivery.seekable = not framed and position(self._channel) is not None
        if framed:
            self._take_compressed(slot.data[DATA_START : DATA_START + used])
        else:
            self._take_plain(slot, used)
        may_lack_pages = self._delivery.any_pages or self._points is not None
        self._delivery.report(self._end.last_events(any_pages=may_lack_pages))
        self._delivery.finish()
        self._slots.barrier()
        if self._points is not None:
            self._points.finish()
        complete = Complete(self._answers.peer, self._answers.wanted, framed)
        send_message(self._connection, complete)
        let_go(self._connection, self._channel, self._commands.wait_for(LetGo))

    def close(self) -> None:
        """Stop what goes on beside the reading."""
        self._delivery.close()

    def _take_plain(self, slot: npt.NDArray[np.uint8], used: int) -> None:
        while used:
            self._take(slot, used)
            self._pass_pages()
            slot = self._slots.acquire()
            used = self._input.fill(slot.data[DATA_START:])

    def _pass_pages(self) -> None:
        """Pass by the pages of a mapped-ram file, which others read at their places."""
        if self._reader.to_skip:
            os.lseek(self._channel.fileno(), self._reader.to_skip, os.SEEK_CUR)
            self._reader.skip(self._reader.to_skip)

    def _take_compressed(self, head: memoryview) -> None:
        inflater = Inflater(len(self._setup.rings), self._take)
        try:
            take_frames(head, self._input, inflater)
        finally:
            inflater.stop()

    def _take(self, slot: npt.NDArray[np.uint8], used: int) -> bool:
        """Parse the next `used` bytes of the stream, from DATA_START on; return True to go on."""
        start, end = DATA_START - len(self._kept), DATA_START + used
        slot[start:DATA_START] = np.frombuffer(self._kept, np.uint8)
        more = True
        while more:
            self._commands.check()
            found, consumed = self._reader.parse(slot.data[start:end], MOST_EVENTS)
            self._deliver(found, slot, start, end)
            start += consumed
            more = len(found) >= MOST_EVENTS
        self._kept = bytes(slot.data[start:end])
        return True

    def _deliver(
        self, found: list[Event], slot: npt.NDArray[np.uint8], start: int, end: int
    ) -> None:
        def deliver(part: list[Event]) -> None:
            self._delivery.deliver(part, slot, start, end)

        if self._points is None:
            deliver(found)
        else:
            self._points.deliver(found, deliver)


def run_transport(connection: Connection, setup: TransportSetup) -> None:
    """Take the channel and receive until the stream ends or the coordinator is gone."""
    channel = receive_channel(connection)
    commands = Commands(connection)
    transport = Transport(connection, setup, channel, commands)
    # The coordinator may die at any moment.
    with suppress(EOFError, ConnectionError):
        try:
            transport.run()
        except (StreamError, ChannelError) as error:
            send_message(connection, Failed(str(error)))
        except FileError as error:
            send_message(connection, Failed(error.line))
        finally:
            transport.close()
            channel.abort()
    commands.remove_unfinished()
