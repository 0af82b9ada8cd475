"""Run the process of one multifd channel, which scans its share of RAM and sends it."""

from __future__ import annotations

from multiprocessing.connection import Connection

from ...guest.tracking.errors import TrackingError
from ...protocol.pages import packets
from ...transport.channel import Channel, ChannelError
from ...transport.crew import reporting
from ...transport.process import receive_channel, send_message
from ...transport.ring import Ring
from ...transport.shared import SharedFd
from ..chunks import MappedBlock
from ..outlet import Outlet
from ..record_writer import RecordWriter
from ..scanners import WorkerSetup
from ..sinks import RingSink
from ..sources import StartRound
from ..worker import Worker
from .numbers import PacketNumbers
from .packet_writer import PacketWriter
from .plan import ChannelPlan


class ChannelWorker:
    """The sender of one channel, which is numbered as its worker is."""

    def __init__(
        self,
        connection: Connection,
        setup: WorkerSetup,
        ring: Ring,
        plan: ChannelPlan,
        numbers: SharedFd,
    ) -> None:
        self._connection = connection
        self._numbers = numbers
        self._setup = setup
        self._ring = ring
        self._plan = plan

    def run(self, blocks: list[MappedBlock], channel: Channel) -> None:
        """Greet the destination, and run rounds until the coordinator commands LetGo.

        Raises ChannelError, and EOFError if the coordinator is gone.
        """
        share, plan = self._setup.share, self._plan
        outlet = Outlet(
            channel, self._connection.fileno(), self._setup.counters, self._setup.share_of_bandwidth
        )
        writer = PacketWriter(
            outlet,
            RecordWriter(RingSink(self._ring, self._connection), None),
            blocks[0].page_size,
            zero_pages=plan.zero_pages,
            compression=plan.compression,
            deflater=packets.deflater(plan.compression, plan.level),
            numbers=PacketNumbers(self._numbers).take,
            last_syncs=plan.last_syncs,
        )
        outlet.send(memoryview(packets.hello(plan.uuid, share.index)))
        writer.sync()
        worker = Worker(share, blocks, writer, self._setup.counters, self._setup.limits)
        while isinstance(command := self._connection.recv(), StartRound):
            worker.run_round(command)
        # What was sent still arrives; an abort would discard it.
        channel.drop()


def run_channel_worker(
    connection: Connection, setup: WorkerSetup, ring: Ring, plan: ChannelPlan, numbers: SharedFd
) -> None:
    """Map RAM, answer "ready", take the channel and feed it; entry point of the process.

    `numbers` is the memory of PacketNumbers.
    """
    blocks = setup.map_blocks(connection)
    send_message(connection, "ready")
    channel = receive_channel(connection)
    channel.answered = True
    prefix = f"multifd channel {setup.share.index}: "
    try:
        with (
            reporting(connection, TrackingError),
            reporting(connection, ChannelError, prefix=prefix),
        ):
            ChannelWorker(connection, setup, ring, plan, numbers).run(blocks, channel)
    finally:
        channel.abort()
