"""Run a process that scans its share of RAM and writes it into a mapped-ram file."""

from __future__ import annotations

from multiprocessing.connection import Connection

from ...guest.tracking.errors import TrackingError
from ...transport.channel import ChannelError
from ...transport.crew import reporting
from ...transport.process import receive_channel, send_message
from ...transport.ring import Ring
from ..outlet import Pace
from ..scanners import WorkerSetup
from ..sinks import RingSink
from ..sources import StartRound
from ..worker import Worker
from .page_writer import FileWriter
from .plan import FilePlan


def run_file_worker(connection: Connection, setup: WorkerSetup, ring: Ring, plan: FilePlan) -> None:
    """Map RAM, answer "ready", take the file and fill it; entry point of the process."""
    blocks = setup.map_blocks(connection)
    send_message(connection, "ready")
    file = receive_channel(connection)
    pace = Pace(connection.fileno(), setup.counters, setup.share_of_bandwidth)
    writer = FileWriter(file, pace, RingSink(ring, connection), plan, blocks[0].page_size)
    worker = Worker(setup.share, blocks, writer, setup.counters, setup.limits)
    with reporting(connection, TrackingError, ChannelError):
        while isinstance(command := connection.recv(), StartRound):
            worker.run_round(command)
    file.drop()
