"""Deliver the events of the stream: pages to the workers, blocks of disks to their images.

Everything else goes to the coordinator.
"""

from __future__ import annotations

from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from ..protocol import events
from ..protocol.reader import StreamReader
from ..protocol.reading.configuration import MAPPED_RAM
from ..protocol.section_events import DiskBlock, DiskProgress, EndOfDisks
from ..protocol.wire.kept import Part
from ..protocol.wire.marks import SectionType
from ..transport.process import send_fd, send_message
from ..transport.spill import SentFile, Spill
from .answers import Answers
from .disks import DiskWriter
from .exchange import Arrived, Commands, Continue, Spilled
from .refusal import refuse, refuse_before_ram, refuse_left_out, refuse_places
from .slots import TABLE_RUNS, Run, Slots
from .worker import Applier, MapBlocks


class Delivery:
    """Distributor of a stream's events to the workers and to the coordinator.

    `applier` applies pages in this process if there are no workers; it then has to map RAM.
    """

    def __init__(
        self,
        connection: Connection,
        commands: Commands,
        *,
        reader: StreamReader,
        answers: Answers,
        slots: Slots,
        applier: Applier,
        disks: DiskWriter,
    ) -> None:
        self._connection = connection
        self._commands = commands
        self._reader = reader
        self._answers = answers
        self._slots = slots
        self._applier = applier
        self._disks = disks
        self._spills: list[Spill] = []
        self._listed = False
        self.seekable = False
        """True if pages can be read at their places in the channel, as mapped-ram has them."""
        self.any_pages = False
        """True once any page of RAM has arrived, or is known to be at its place in the file."""

    def deliver(
        self, found: list[events.Event], slot: npt.NDArray[np.uint8], start: int, end: int
    ) -> None:
        """Deliver events whose bytes are in `start` to `end` of the slot.

        Raises UnsupportedError for what a receiver cannot apply, and FileError for a disk.
        """
        others: list[events.Event] = []
        runs: list[Run] = []
        blocks: list[DiskBlock | DiskProgress] = []
        for event in found:
            if isinstance(event, (events.PageRun, events.XbzrleRun)):
                self.any_pages = True
                runs.append(event)
            elif isinstance(event, events.RamBlocks):
                self._listed = True
                self._check(event)
                others.append(event)
            elif isinstance(event, (DiskBlock, DiskProgress)):
                refuse_before_ram(event, listed=self._listed)
                blocks.append(event)
            else:
                self._check(event)
                others.append(event)
        self.report(others)
        for block in blocks:
            self._disks.take(block)
        for first in range(0, len(runs), TABLE_RUNS):
            self._slots.publish(runs[first : first + TABLE_RUNS], slot, start, end)

    def finish(self) -> None:
        """Check that all of the disks has arrived. Raises StreamError, FileError."""
        self._disks.finish()

    def close(self) -> None:
        """Stop writing to the disks, which a failure may leave in the middle."""
        self._disks.close()

    def _check(self, event: events.Event) -> None:
        refuse(event)
        if not self.seekable:
            refuse_places(event)
        if isinstance(event, events.Configuration):
            self.any_pages = MAPPED_RAM in (event.capabilities or ())
        elif isinstance(event, events.RamBlocks):
            refuse_left_out(event)

    def report(self, found: list[events.Event]) -> None:
        """Report events that are not pages; obey those that are commands of the source."""
        told: list[events.Event] = []
        for event in found:
            if isinstance(event, events.Command):
                self._answers.obey(event)
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
        command = self._commands.wait_for((MapBlocks, Continue))
        if isinstance(command, MapBlocks):
            self._applier.map(self._connection, command)
            self._commands.wait_for(Continue)


def _matters(event: events.Event) -> bool:
    """Return whether the coordinator needs the event."""
    if isinstance(event, events.RamSection):
        return event.kind == SectionType.START
    passing = (events.EndOfRam, events.Footer, events.MultifdFlush, EndOfDisks)
    return not isinstance(event, passing)
