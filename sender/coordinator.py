"""Run an outgoing migration: drive the rounds, pause the guest and hand it over.

    setup -> active: round 0, 1, ... -> guest paused, last round, devices -> handover -> completed

If anything fails before the destination has the whole guest, the guest runs on at the source.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ..guest.base import Guest
from ..guest.errors import GuestError, MigrationCancelledError, MigrationError
from ..guest.handing_out import SourceJob
from ..guest.requests import Requests
from ..protocol.handover import Peer, Word
from ..protocol.states import MigrationStatus, StateMachine
from ..transport.channel import Channel, ChannelError
from ..transport.compression import parse_compression
from ..transport.connecting import Connecting
from ..transport.crew import Crew, CrewError
from ..transport.shared import Wakeup
from ..transport.uri import Uri, UriError, parse_uri
from . import stream
from .convergence import Convergence
from .destination import DestinationProgress, check_host
from .errors import UnconfirmedError
from .figures import Figures
from .handover import failure, lead, say_hello
from .limits import Limits
from .parameters import SendParameters
from .precopy import Precopy
from .processes import Processes
from .reactions import Reactions
from .report import Report
from .sections import sources_of, total_of
from .topology import plan

_log = logging.getLogger(__name__)


class Sender:
    """One outgoing migration of `guest` to `uri`; call `run` once.

    Raises CacheSizeError if no XBZRLE cache can have the requested size.
    """

    def __init__(self, guest: Guest, uri: str, parameters: SendParameters | None = None) -> None:
        self._guest = guest
        self._uri = uri
        self._parameters = parameters or SendParameters()
        compression = parse_compression(self._parameters.compress)
        total = total_of(guest, self._parameters)
        convergence = Convergence(total, self._parameters.downtime_limit)
        self.limits = Limits(guest, self._parameters, convergence)
        """The limits of this migration, which may be changed while it runs."""
        self.states = StateMachine()
        self.states.add_listener(lambda old, new: _log.info("%s -> %s", old.value, new.value))
        self.on_round: Callable[[int], None] = lambda _: None
        """Called with the number, from 1 on, of each round that begins."""
        self.on_switchover: Callable[[], None] = lambda: None
        """Called when the last round is due, before the guest is paused if it runs."""
        self._requests = Requests()
        self._proceed = Wakeup()
        self._crew = Crew(self._requests.fileno(), self._requests.check)
        self._topology = plan(self._parameters, compression, guest.machine)
        self._processes = Processes(
            guest, self._topology, self._crew, compression, self.limits.shared
        )
        self._sources = sources_of(
            guest,
            self._parameters,
            topology=self._topology,
            processes=self._processes,
            crew=self._crew,
            compression=compression,
        )
        self._progress = DestinationProgress(self._processes)
        self._report = Report(
            guest,
            self._parameters,
            processes=self._processes,
            sources=self._sources,
            convergence=convergence,
            limits=self.limits,
            method=None if compression is None else str(compression),
        )
        self._reactions = Reactions(
            guest,
            throttle=self._parameters.auto_converge,
            limits=self.limits,
            report=self._report,
            on_stall=lambda: self._on_progress(self.figures()),
        )
        self._precopy = Precopy(
            guest=guest,
            sources=self._sources,
            convergence=convergence,
            report=self._report,
            reactions=self._reactions,
            on_round=lambda number: self.on_round(number),  # noqa: PLW0108 - it may change
        )
        self._on_progress: Callable[[Figures], None] = lambda _: None
        self._channel: Channel | None = None
        self._channels: Sequence[Channel] = ()
        self._peer = Peer.STOCK
        self._paused_here = False

    def cancel(self) -> None:
        """Stop the migration as soon as possible; callable from any thread or signal handler.

        A guest that was already given up cannot be cancelled.
        """
        self._requests.cancel()

    def leave(self) -> None:
        """Cancel, and end within seconds even if the guest is given up and not confirmed."""
        self._requests.leave()

    def proceed(self) -> None:
        """Continue from `pre-switchover`, where `pause_before_switchover` stops the migration."""
        self._proceed.set()

    def run(self, on_progress: Callable[[Figures], None] | None = None) -> Figures:
        """Migrate the guest and return the final figures.

        Raises MigrationError if the guest stays at the source; the guest is then as it was before.
        """
        self._on_progress = on_progress or self._on_progress
        try:
            with self._crew.reasons():
                self._migrate()
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

    def _migrate(self) -> None:
        blockers = self._guest.blockers
        if blockers:
            raise MigrationError(f"the guest cannot migrate: {'; '.join(blockers)}")
        uri = parse_uri(self._uri)
        path = self._topology.path
        path.check_uri(uri)
        self._sources.prepare(self._parameters.tracker)
        self.states.to(MigrationStatus.SETUP)
        self._channel = self._connect(uri)
        self._channels = path.connect(self._channel, lambda: self._connect(uri))
        return_path = self._parameters.return_path and self._channel.bidirectional
        # Section ids, names and what is sent before RAM do not change while the guest runs.
        state = self._guest.save_devices()
        opening = path.begin(self._channel, self._guest, state, return_path=return_path)
        opening += self._sources.start(state)
        self._processes.start(
            state.ram_section_id, self._channel, self._channels, return_path=return_path
        )
        self._report.meter.begin("total")
        self._report.meter.begin("setup")
        self._crew.on_tick = self._tick
        self._processes.write(opening)
        # Workers have their own rings: their first slot must not overtake this.
        self._processes.flush()
        self._report.meter.end("setup")
        self.on_round(1)
        self.states.to(MigrationStatus.ACTIVE)
        self._send_rounds(return_path)
        self._hand_over(return_path)
        self._report.meter.end("downtime")
        self._report.meter.end("total")
        self.states.to(MigrationStatus.COMPLETED)

    def _connect(self, uri: Uri) -> Channel:
        """Connect to the destination; a cancel does not wait for a peer that does not answer."""
        connecting = Connecting(uri)
        try:
            self._crew.wait_fd(connecting.fileno())
        except BaseException:
            connecting.abandon()
            raise
        return connecting.result()

    def _send_rounds(self, return_path: bool) -> None:
        """Send rounds while the guest runs, then the last round of the paused guest."""
        self._precopy.converge()
        if return_path:
            hello = say_hello(self._processes)
            self._peer = hello.peer
            if hello.slow and self._guest.running:
                # The guest kept writing while the answer was on its way.
                self._precopy.send_tracked()
                self._precopy.converge()
        self._report.note_downtime()
        self._report.meter.begin("downtime")
        self.on_switchover()
        if self._guest.running:
            self._guest.pause()
            self._paused_here = True
            self._progress.note()
            self.limits.set_max_bandwidth(0)
        self._reactions.release_guest()
        if self._parameters.pause_before_switchover:
            self.states.to(MigrationStatus.PRE_SWITCHOVER)
            self._crew.wait_fd(self._proceed.fileno())
            self.states.to(MigrationStatus.DEVICE)
            self._progress.note()
        self._guest.finish_ram()
        self._precopy.send_last()

    def _hand_over(self, return_path: bool) -> None:
        """Send the device state, then the end of the stream, which passes the guest on."""
        state = self._guest.save_devices(running=self._paused_here)
        path = self._topology.path
        self._processes.write(self._sources.complete())
        self._processes.write(stream.devices(state))
        self._processes.flush()
        path.finish()
        assert self._channel is not None
        job = SourceJob(
            closing=self._processes.framed(path.closing(state)),
            peer=self._peer,
            return_path=return_path,
            resume=self._paused_here,
            confirm=self._processes.word(Word.CONFIRM),
            abort=self._processes.word(Word.ABORT),
            answers=self._processes.let_go(),
        )
        for channel in self._channels:
            channel.drop()
        # From here on, the guest's process resumes the guest if it stays.
        paused_here, self._paused_here = self._paused_here, False
        handed = lead(self._guest, self._channel, job, self._requests.wishes(), self._tick)
        error = failure(handed, cancelled=self._requests.cancelled)
        if error is not None:
            self._channel.drop()
            raise error
        try:
            self._channel.close()
        except ChannelError:
            # Only a command that reads the stream can fail here, and then it does not have the
            # guest.
            if paused_here:
                self._guest.resume()
            raise

    def _give_up(self, error: BaseException) -> None:
        """Break the channel first, so that the other side cannot start, then let the guest run.

        A guest that was given up stays paused, because it is at the destination.
        """
        cancelled = isinstance(error, MigrationCancelledError)
        if self.states.state is not MigrationStatus.NONE and cancelled:
            self.states.to(MigrationStatus.CANCELLING)
        self._crew.stop()
        if self._channel is not None:
            self._channel.abort()
        for channel in self._channels:
            channel.abort()
        try:
            if self._paused_here:
                self._guest.resume()
            self._reactions.release_guest()
        finally:
            if isinstance(error, UnconfirmedError):
                self.states.to(MigrationStatus.COMPLETED)
            elif self.states.state is MigrationStatus.CANCELLING:
                self.states.to(MigrationStatus.CANCELLED)
            elif self.states.state is not MigrationStatus.NONE:
                self.states.to(MigrationStatus.FAILED)

    def _release(self) -> None:
        self._crew.stop()
        self._processes.close()
        self._sources.close()
        self._requests.close()
        self._proceed.close()

    def _tick(self) -> None:
        assert self._channel is not None
        # Whoever stops the migration at pre-switchover may take as long as he wants.
        if self._paused_here and self.states.state is not MigrationStatus.PRE_SWITCHOVER:
            self._progress.check()
        check_host(self._channel)
        self._report.window()
        self._on_progress(self.figures())

    def figures(self) -> Figures:
        """Return the present figures."""
        return self._report.figures(self.states.state)
