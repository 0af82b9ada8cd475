"""The way of a compressed stream into a QEMU, and the handover of the guest that it brings."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ...guest.errors import MigrationCancelledError, MigrationError
from ...guest.handing_in import DestinationJob
from ...guest.qemu.guest import QemuGuest
from ...guest.requests import Requests
from ...protocol.handover import Destination, Peer, Word
from ...protocol.words import word_on_wire
from ...receiver.errors import KeptError
from ...receiver.exchange import LetGo, Promised, Released
from ...receiver.handover import lead
from ...transport.channel import Channel
from ...transport.crew import Crew
from ...transport.process import send_channel, send_message
from .carrier_in import InSetup, run_carrier_in
from .carrying import Loaded, new_ends

_NAME = "vmferry-incoming"


class CarriedIn:
    """A channel whose stream a carrier decompresses for QEMU; `running`: a guest may run here.

    QEMU must not start the guest by itself. The channel belongs to this object.
    """

    def __init__(
        self, guest: QemuGuest, channel: Channel, requests: Requests, running: bool
    ) -> None:
        self._guest = guest
        self._channel = channel
        self._requests = requests
        self._running = running
        self._ends, self._theirs = new_ends()
        self._crew = Crew(self._ends.stop.fileno(), lambda: None)
        self._child = self._crew.start("vmferry-carrier", run_carrier_in, (InSetup(self._ends),))
        self._loaded: Loaded | None = None
        self._over = False

    def open(self) -> str:
        """Give the carrier the channel, and QEMU its end; return the URI for QEMU."""
        send_channel(self._child.connection, self._channel)
        self._crew.wait_for(str)
        self._guest.monitor.give(_NAME, self._theirs.fileno())
        self._theirs.close()
        return f"fd:{_NAME}"

    @property
    def loaded(self) -> bool:
        """Return whether QEMU has said on its connection that the guest is loaded, or closed it."""
        return self._loaded is not None

    @property
    def transferred(self) -> int:
        """Return the bytes that have arrived."""
        return self._ends.counters["transferred"]

    def fds(self) -> list[int]:
        """Return the descriptors of the carrier: its reports, and its death."""
        return [] if self.loaded else [self._child.connection.fileno(), self._child.pidfd]

    def look(self) -> None:
        """Take the reports of the carrier. Raises CrewError if it failed or died."""
        if self.loaded:
            return
        report = self._crew.next_report((), time.monotonic())
        if isinstance(report, Loaded):
            self._loaded = report

    def hand_over(self, on_look: Callable[[], None]) -> None:
        """Tell the source that the guest is here, and let it run once the source has left.

        Raises MigrationError if the source has it again, and KeptError if that is not known.
        """
        assert self._loaded is not None
        running = self._running and not self._loaded.stopped
        job = DestinationJob(
            peer=Peer.STOCK,
            return_path=self._loaded.status is not None,
            running=running,
            confirm=word_on_wire(Word.CONFIRM, framed=True),
            abort=word_on_wire(Word.ABORT, framed=True),
        )
        send_message(self._child.connection, LetGo(job, self._guest.finisher_of(running=running)))
        self._crew.wait_for(Released)
        self._crew.retire()
        connection = self._child.connection
        outcome = lead(
            self._guest,
            self._channel,
            job,
            wishes=self._requests.wishes(),
            on_look=on_look,
            on_promise=lambda: send_message(connection, Promised()),
        )
        send_message(connection, "over")
        self._over = True
        self._channel.drop()
        if outcome.state is Destination.KEPT:
            raise KeptError(f"{outcome.reason}; {self._guest.keep()}")
        if outcome.state is Destination.RETURNED:
            if self._requests.cancelled:
                raise MigrationCancelledError("cancelled; the source has the guest")
            raise MigrationError(outcome.reason)
        self._close()

    def abort(self) -> None:
        """Break both ends, unless the handover is over."""
        if not self._over:
            if self._ends.stop.fileno() >= 0:
                os.eventfd_write(self._ends.stop.fileno(), 1)
            self._channel.abort()
        self._close()

    def _close(self) -> None:
        self._theirs.close()
        self._crew.stop()
        # A command that wrote the stream has done so.
        self._channel.abort()
        self._ends.close()
