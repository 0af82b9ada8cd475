"""Run a process that reads its share of a mapped-ram file's pages into guest memory."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection

from ...protocol.errors import StreamError
from ...protocol.events import RamBlocks
from ...transport.channel import ChannelError
from ...transport.counters import Counters
from ...transport.crew import Failed, reporting
from ...transport.process import receive_channel, send_message
from ...transport.shared import Readiness
from ...transport.spill import FileError
from ..worker import MapBlocks
from .memory import PageReader, SavedFile


@dataclass(frozen=True)
class ReaderSetup:
    """The setup of the reader `index` of `count`; the stream begins at `start` in its file.

    The connection brings the descriptors of the RAM blocks, then the file twice: for all that is
    not pages, and for pages.
    """

    index: int
    count: int
    start: int
    blocks: MapBlocks
    listed: RamBlocks
    counters: Counters


@dataclass(frozen=True)
class PagesRead:
    """Report: the share of this process is in guest memory."""


def run_reader(connection: Connection, setup: ReaderSetup) -> None:
    """Read this process's share, report that, and wait for the coordinator's end."""
    commands = Readiness(connection.fileno())

    def check() -> None:
        if commands.now():
            raise EOFError

    blocks = setup.blocks.receive(connection)
    file = SavedFile(receive_channel(connection), receive_channel(connection), setup.start)
    reader = PageReader(
        file,
        blocks,
        index=setup.index,
        count=setup.count,
        counters=setup.counters,
        check=check,
    )
    with reporting(connection, StreamError, ChannelError):
        try:
            reader.read(setup.listed)
        except FileError as error:
            send_message(connection, Failed(error.line))
        else:
            send_message(connection, PagesRead())
    commands.ready()
