"""Run an incoming migration: rebuild RAM, load devices and resume the guest.

    setup: listening -> active: RAM blocks prepared, pages applied
        -> end of stream, devices loaded, caches invalidated -> completed, guest resumed

The guest starts only after all of these steps. After any failure it is not started, and the error
is one line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ..guest.base import Guest
from ..guest.errors import GuestError, MigrationCancelledError, MigrationError
from ..guest.handing import Outcome
from ..guest.handing_in import DestinationJob
from ..guest.requests import Requests
from ..guest.watching import HolderSilent
from ..protocol import events
from ..protocol.handover import Destination, Word
from ..protocol.states import MigrationStatus, StateMachine
from ..protocol.words import word_on_wire
from ..transport.channel import Channel, ChannelError, Listener, listen
from ..transport.crew import Crew, CrewError
from ..transport.meter import Meter
from ..transport.settings import DIRECT_IO, MAX_DEVICE_STATE, MULTIFD_CHANNELS, WORKERS
from ..transport.spill import SpillFile
from ..transport.uri import Fd, File, UriError, parse_uri
from .errors import KeptError
from .exchange import Arrived, Complete, DiskWanted, Spilled
from .figures import Figures
from .handover import lead
from .mapped_ram.restore import Restore
from .multifd.gathering import Gathering, check_uri
from .processes import Processes
from .stream import Incoming
from .topology import plan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReceiveParameters:
    """The parameters of an incoming migration. Raises ParameterError for an unusable value."""

    workers: int | None = None
    """Number of processes that apply pages. With 0, the transport process does that itself (a
    mapped-ram file is read by at least one); with None, the machine decides.
    """
    paused: bool = False
    """Leave the guest paused at the end."""
    max_device_state: int | None = MAX_DEVICE_STATE.default
    """Limit in bytes of the device state that a source may send, None: no limit. Beyond some MiB
    device state is kept in a temporary file.
    """

    multifd_channels: int | None = None
    """Number of connections that pages travel over, besides the main one, as at the source; None:
    no multifd. Each is read by a process of its own, so None means no `workers` then.
    """
    direct_io: bool = DIRECT_IO.default
    """Read the pages of a mapped-ram file past the page cache."""

    def __post_init__(self) -> None:
        """Check all values, because a wrong one would otherwise fail in another process."""
        WORKERS.check(self.workers)
        MULTIFD_CHANNELS.check(self.multifd_channels)
        MAX_DEVICE_STATE.check(self.max_device_state)


class Receiver:
    """One incoming migration into `guest` from `uri`; call `run` once."""

    def __init__(self, guest: Guest, uri: str, parameters: ReceiveParameters | None = None) -> None:
        self._guest = guest
        self._uri = uri
        self._parameters = parameters or ReceiveParameters()
        self.states = StateMachine()
        self.states.add_listener(lambda old, new: _log.info("%s -> %s", old.value, new.value))
        self.paused = self._parameters.paused
        """True if the guest is not resumed at the end; it may change until then."""
        self._requests = Requests()
        self._crew = Crew(self._requests.fileno(), self._requests.check)
        topology = plan(self._parameters.workers, self._parameters.multifd_channels)
        self._gathering = Gathering(topology.channels)
        self._processes = Processes(topology, self._crew, self._parameters.max_device_state)
        self._restore = Restore(self._crew, topology.readers, direct_io=self._parameters.direct_io)
        self.on_refused: Callable[[str], None] = lambda _: None
        """Called with one line for each connection that is refused because no source made it."""
        self.on_let_go: Callable[[Connection], None] = lambda _: None
        """Called once the transport process was asked to leave the channel to the guest's holder,
        with the connection on which it answers.
        """
        self._listener: Listener | None = None
        self._channel: Channel | None = None
        self._on_progress: Callable[[Figures], None] = lambda _: None
        self._incoming = Incoming()
        self._prepared = False
        self._meter = Meter()

    def cancel(self) -> None:
        """Stop the migration as soon as possible; callable from any thread or signal handler.

        A guest that already runs here cannot be cancelled.
        """
        self._requests.cancel()

    def leave(self) -> None:
        """Cancel, and end within seconds even if the source does not say who has the guest."""
        self._requests.leave()

    def run(
        self,
        on_progress: Callable[[Figures], None] | None = None,
        on_listening: Callable[[str], None] | None = None,
    ) -> Figures:
        """Receive the guest and return the final figures.

        Raises MigrationError if the guest did not arrive; it was not started then. `on_listening`
        is called with the URI, which has the real port, once a source may connect.
        """
        self._on_progress = on_progress or self._on_progress
        try:
            with self._crew.reasons():
                self._receive(on_listening or (lambda _: None))
        except BaseException as error:
            self._give_up(error)
            if isinstance(error, (ChannelError, UriError, GuestError, CrewError)):
                raise MigrationError(str(error)) from error
            raise
        finally:
            final = self.figures()
            self._release()
        self._on_progress(final)
        return final

    def _receive(self, on_listening: Callable[[str], None]) -> None:
        uri = parse_uri(self._uri)
        if self._parameters.direct_io and not isinstance(uri, (File, Fd)):
            raise MigrationError(f"{uri}: only a file can be read past the page cache (direct-io)")
        if self._parameters.multifd_channels:
            check_uri(uri)
        self._guest.check_incoming()
        self.states.to(MigrationStatus.SETUP)
        self._listener = listen(uri)
        self._processes.start()
        on_listening(self._listener.address)
        self._crew.on_tick = self._gathering.check_patience
        self._channel, channels = self._gathering.gather(
            self._listener, self._crew.wait_fd, self.on_refused
        )
        self._listener.close()
        self._restore.open(self._channel)
        self._crew.on_tick = self._tick
        self._meter.begin("total")
        self._processes.attach(self._channel, channels)
        self.states.to(MigrationStatus.ACTIVE)
        self._hand_over(self._take_stream())
        self._meter.end("total")

    def _take_stream(self) -> Complete:
        while True:
            report = self._crew.wait_for((Arrived, Spilled, DiskWanted, Complete))
            if isinstance(report, Complete):
                return report
            if isinstance(report, DiskWanted):
                self._prepare_disk(report.name)
                continue
            if isinstance(report, Spilled):
                self._incoming.files.append(SpillFile(self._processes.receive_fd()))
                continue
            assert isinstance(report, Arrived)
            for event in report.events:
                self._incoming.take(event)
                if isinstance(event, events.Configuration):
                    self._gathering.check_uuid(event.uuid)
                if isinstance(event, events.RamBlocks):
                    self._prepare()

    def _prepare(self) -> None:
        """Create RAM; if this process dies meanwhile, the transport process removes what exists."""
        machine, layout = self._incoming.machine(), self._incoming.layout()
        self._processes.stand_by(self._guest.remover())
        self._guest.prepare(machine, layout)
        self._prepared = True
        self._processes.stand_by(self._guest.remover())
        self._processes.map_blocks(self._guest.blocks)
        listed = self._incoming.blocks
        assert listed is not None
        if any(block.mapped for block in listed.blocks):
            self._restore.read(listed, self._guest.blocks)
        self._processes.go_on()

    def _prepare_disk(self, name: str) -> None:
        """Have a disk written; if this process dies, the transport process removes a new image."""
        disk = self._guest.prepare_disk(name)
        self._processes.stand_by(self._guest.remover())
        self._processes.open_disk(disk)

    def _hand_over(self, complete: Complete) -> None:
        """Load the devices, then take over the guest, whose pages are all in place."""
        if not self._prepared:
            raise MigrationError("the stream brought no RAM")
        self._guest.load_devices(self._incoming.machine(), self._incoming.device_state())
        self._guest.invalidate_caches()
        running = not self.paused
        self._guest.seal(running=running)
        job = DestinationJob(
            peer=complete.peer,
            return_path=complete.return_path,
            running=running,
            confirm=word_on_wire(Word.CONFIRM, framed=complete.framed),
            abort=word_on_wire(Word.ABORT, framed=complete.framed),
        )
        self._processes.let_go(job, self._guest.finisher(), self.on_let_go)
        assert self._channel is not None
        wishes = self._requests.wishes()
        # From here on the source may give its guest up: nothing is removed unless it asks for that.
        self._prepared = False
        try:
            outcome = lead(
                self._guest,
                self._channel,
                job,
                wishes,
                on_look=self._tick,
                on_promise=self._processes.promised,
            )
        except HolderSilent:
            outcome = Outcome(Destination.KEPT, "the guest's process does not answer")
        self._processes.dismiss()
        self._conclude(outcome)
        self.states.to(MigrationStatus.COMPLETED)

    def _conclude(self, outcome: Outcome[Destination]) -> None:
        """Raise the error that describes the outcome, unless the guest is here."""
        assert self._channel is not None
        self._channel.drop()
        if outcome.state is Destination.KEPT:
            raise KeptError(f"{outcome.reason}; {self._guest.keep()}")
        if outcome.state is Destination.RETURNED:
            self._guest.abort_incoming()
            if self._requests.cancelled:
                raise MigrationCancelledError("cancelled; the source has the guest")
            raise MigrationError(outcome.reason)

    def _give_up(self, error: BaseException) -> None:
        # Otherwise the transport process would take the silence for the death of this process, and
        # promise the guest to the source.
        self._processes.dismiss()
        self._crew.stop()
        if self._channel is not None:
            self._channel.abort()
        if self._prepared:
            self._guest.abort_incoming()
        self.states.end_early(cancelled=isinstance(error, MigrationCancelledError))

    def _release(self) -> None:
        self._crew.stop()
        if self._listener is not None:
            self._listener.close()
        if self._channel is not None:
            self._channel.close()
        self._processes.close()
        self._restore.close()
        self._requests.close()

    def _tick(self) -> None:
        self._meter.window(self.figures().transferred, 0)
        self._on_progress(self.figures())

    def figures(self) -> Figures:
        """Return the present figures."""
        blocks, processes, restore = self._incoming.blocks, self._processes, self._restore
        multifd_bytes = processes.over_channels("bytes")
        beside = multifd_bytes + restore.total("transferred")

        def pages(kind: str) -> int:
            return processes.applied(kind) + processes.over_channels(kind) + restore.total(kind)

        return Figures(
            status=self.states.state,
            total=blocks.total if blocks else 0,
            transferred=processes.received("transferred") + beside,
            multifd_bytes=multifd_bytes,
            duplicate=pages("duplicate"),
            normal=pages("normal"),
            xbzrle=self._processes.applied("xbzrle"),
            page_size=self._incoming.page_size,
            mbps=self._meter.mbps,
            total_time=self._meter.milliseconds("total"),
        )
