"""Open the channels of multifd, and keep the main channel in step with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...guest.base import Guest
from ...guest.errors import MigrationError
from ...guest.parts import DeviceState
from ...protocol.wire.stream import section_part
from ...transport.channel import Channel, ChannelError
from ...transport.uri import Tcp, Unix, Uri
from .. import stream
from ..page_path import WorkerEntry
from .numbers import PacketNumbers
from .plan import ChannelPlan
from .process import run_channel_worker


class MultifdPath:
    """The way of pages over several channels, each fed by a worker of its own."""

    def __init__(self, plan: ChannelPlan) -> None:
        self._plan = plan
        self._numbers = PacketNumbers.memory()

    def check_uri(self, uri: Uri) -> None:
        """Raise MigrationError unless several connections can be made to this URI."""
        if not isinstance(uri, (Tcp, Unix)):
            raise MigrationError(f"{uri}: multifd needs several connections: send to tcp: or unix:")

    def connect(self, main: Channel, connect: Callable[[], Channel]) -> Sequence[Channel]:
        """Connect all channels; a QEMU before 8.0 takes the first connection for the main one."""
        del main
        count, opened = self._plan.channels, list[Channel]()
        try:
            for _ in range(count):
                opened.append(connect())
        except BaseException as error:
            for channel in opened:
                channel.abort()
            if not isinstance(error, ChannelError):
                raise
            raise MigrationError(
                f"multifd channel {len(opened)} of {count}: {error}; the destination must expect"
                f" {count} channels"
            ) from error
        return opened

    def begin(
        self, channel: Channel, guest: Guest, state: DeviceState, *, return_path: bool
    ) -> bytes:
        """Return the beginning of an ordinary stream."""
        del channel
        return stream.head(guest, state, guest.machine.capabilities, return_path=return_path)

    def ram_start(self, guest: Guest, section_id: int) -> bytes:
        """Return the list of RAM blocks, with the first sync point."""
        return stream.ram_start(guest, section_id, flush=self._plan.flush)

    def worker(self) -> WorkerEntry:
        """Return the entry of a worker that feeds its channel."""
        return run_channel_worker, (self._plan, self._numbers)

    def round_head(self, section_id: int) -> bytes:
        """Return the head of the piece that the workers' records are in."""
        return section_part(section_id)

    def round_tail(self, section_id: int) -> bytes:
        """Return the end of that piece, with the sync point."""
        return stream.part_tail(section_id, flush=self._plan.flush)

    def finish(self) -> None:
        """Do nothing: the channels end with a sync point."""

    def closing(self, state: DeviceState) -> bytes:
        """Return the end of the main channel."""
        return stream.closing(state)

    def close(self) -> None:
        """Release the counter of packets."""
        self._numbers.close()
