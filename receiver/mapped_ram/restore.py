"""Have several processes read the pages of a mapped-ram file, for the coordinator."""

from __future__ import annotations

import os

from ...guest.errors import MigrationError
from ...guest.mapping import block_layout
from ...guest.parts import RamBlock
from ...protocol.events import RamBlocks
from ...transport.channel import Channel
from ...transport.counters import Counters
from ...transport.crew import Crew
from ...transport.direct import position, reopen
from ...transport.process import preload, send_channel, send_fd
from ..worker import MapBlocks
from .memory import READER_COUNTERS
from .process import PagesRead, ReaderSetup, run_reader

preload("vmferry.receiver.mapped_ram.process")


class Restore:
    """The readers of the file of one incoming migration, if it arrives in a mapped-ram file.

    `count` is their number.
    """

    def __init__(self, crew: Crew, count: int, *, direct_io: bool) -> None:
        self._crew = crew
        self._count = count
        self._direct_io = direct_io
        self._counters: list[Counters] = []
        self._channel: Channel | None = None
        self._pages: Channel | None = None
        self._start: int | None = None

    def open(self, channel: Channel) -> None:
        """Note where in its file the channel's stream begins, before anybody reads it.

        Raises ChannelError if its pages shall be read past the page cache, and cannot.
        """
        self._channel, self._start = channel, position(channel)
        if self._start is not None and self._direct_io:
            self._pages = reopen(channel, os.O_RDONLY, direct_io=True)

    def read(self, listed: RamBlocks, blocks: tuple[RamBlock, ...]) -> None:
        """Make the memory of all blocks what the file says. Raises MigrationError, CrewError."""
        channel, start = self._channel, self._start
        assert channel is not None
        if start is None:
            raise MigrationError(f"{channel.name}: a mapped-ram stream is read from a file")
        self._counters = [Counters.create(READER_COUNTERS) for _ in range(self._count)]
        for index, counters in enumerate(self._counters):
            layout = MapBlocks(block_layout(blocks))
            setup = ReaderSetup(index, self._count, start, layout, listed, counters)
            child = self._crew.start(f"vmferry-reader-{index}", run_reader, (setup,))
            for block in blocks:
                send_fd(child.connection, block.fd)
            send_channel(child.connection, channel)
            send_channel(child.connection, self._pages or channel)
        for _ in self._counters:
            self._crew.wait_for(PagesRead)

    def total(self, name: str) -> int:
        """Return a counter, summed over the readers."""
        return sum(counters[name] for counters in self._counters)

    def close(self) -> None:
        """Release what was shared with the readers, which have ended."""
        for counters in self._counters:
            counters.close()
        if self._pages is not None:
            self._pages.drop()
