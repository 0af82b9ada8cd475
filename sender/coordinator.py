"""Run an outgoing migration: drive the rounds, pause the guest and hand it over.

    setup -> active: round 0, 1, ... -> guest paused, last round, devices -> handover -> completed

If anything fails before the destination has the whole guest, the guest runs on at the source.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..guest.base import Guest
from ..guest.errors import GuestError, MigrationCancelledError, MigrationError
from ..guest.handing_out import SourceJob
from ..guest.watching import Wishes
from ..protocol.handover import Peer, Source, Word
from ..protocol.states import MigrationStatus, StateMachine
from ..transport.channel import Channel, ChannelError
from ..transport.connecting import Connecting
from ..transport.crew import Crew, CrewError, SilenceError
from ..transport.process import default_workers, processors
from ..transport.shared import Wakeup
from ..transport.silence import GONE_AFTER
from ..transport.uri import Uri, UriError, parse_uri
from . import stream
from .compression import parse_compression
from .convergence import Convergence, Round
from .errors import UnconfirmedError
from .figures import Figures
from .handover import Handed, lead
from .page_cache import DEFAULT_SIZE, cache_pages
from .parameters import OnStall, SendParameters
from .processes import Processes
from .report import Report
from .stall import StallDetector
from .throttle import AutoConverge
from .transport import RoundSent
from .worker import StartRound

_log = logging.getLogger(__name__)

HELLO_TIMEOUT = 60.0
"""Seconds that the destination may take to answer a PING before the guest is paused."""
HELLO_IS_QUICK = 0.05
"""Longest time, in seconds, of an answer after which no further round is made."""
STILL_TIMEOUT = 60.0
"""Seconds that the destination may read nothing while the guest is paused."""
ENOUGH_FOR_THREADS = 4
"""Largest number of processors that compression threads of the transport process can keep busy."""


class Sender:
    """One outgoing migration of `guest` to `uri`; call `run` once.

    Raises CacheSizeError if no XBZRLE cache can have the requested size, and CompressionError.
    """

    def __init__(self, guest: Guest, uri: str, parameters: SendParameters | None = None) -> None:
        self._guest = guest
        self._uri = uri
        self._parameters = parameters or SendParameters()
        self._total = sum(block.length for block in guest.blocks)
        cache = self._cache_pages(self._parameters.xbzrle_cache_size)
        self.states = StateMachine()
        self.states.add_listener(lambda old, new: _log.info("%s -> %s", old.value, new.value))
        self.on_round: Callable[[int], None] = lambda _: None
        """Called with the number, from 1 on, of each round that begins."""
        self.on_switchover: Callable[[], None] = lambda: None
        """Called when the last round is due, before the guest is paused if it runs."""
        self._wake = Wakeup()
        self._proceed = Wakeup()
        self._crew = Crew(self._wake.fileno(), self._check_cancel)
        self._compression = parse_compression(self._parameters.compress)
        self._processes = Processes(guest, self._workers(), self._crew, self._compression)
        self._processes.limits.set("max_bandwidth", self._parameters.max_bandwidth or 0)
        self._processes.limits.set("xbzrle_cache", cache if self._parameters.xbzrle else 0)
        self._channel: Channel | None = None
        self._on_progress: Callable[[Figures], None] = lambda _: None
        self._peer = Peer.STOCK
        self._paused_here = False
        self._still_since = (0, 0.0)
        self._cancel_asked = False
        self._leave_asked = False
        self._convergence = Convergence(self._total, self._parameters.downtime_limit)
        method = None if self._compression is None else str(self._compression)
        self._report = Report(guest, self._parameters, self._processes, self._convergence, method)
        if self._parameters.auto_converge is not None:
            self._report.throttle = AutoConverge(self._parameters.auto_converge)
        self._stall = StallDetector()
        self.on_stall = self._parameters.on_stall
        """The reaction to a stall; it may change during the migration."""

    def cancel(self) -> None:
        """Stop the migration as soon as possible; callable from any thread or signal handler.

        A guest that was already given up cannot be cancelled.
        """
        self._cancel_asked = True
        self._wake.set()

    def leave(self) -> None:
        """Cancel, and end within seconds even if the guest is given up and not confirmed."""
        self._leave_asked = True
        self.cancel()

    def proceed(self) -> None:
        """Continue from `pre-switchover`, where `pause_before_switchover` stops the migration."""
        self._proceed.set()

    def set_downtime_limit(self, seconds: float) -> None:
        """Change the downtime limit, in seconds, of the running migration."""
        self._convergence.downtime_limit = seconds

    def set_max_bandwidth(self, limit: int | None) -> None:
        """Change the bandwidth limit of the running migration, in bytes per second (None: none)."""
        self._processes.limits.set("max_bandwidth", limit or 0)

    def set_xbzrle_cache_size(self, size: int) -> None:
        """Change the size of the XBZRLE cache, in bytes, from the next round on.

        Raises CacheSizeError.
        """
        pages = self._cache_pages(size)
        if self._parameters.xbzrle:
            self._processes.limits.set("xbzrle_cache", pages)

    def _workers(self) -> int:
        """Return the number of worker processes.

        Compression gets one worker per processor if there are more processors than threads could
        use.
        """
        if self._parameters.workers is not None:
            return self._parameters.workers
        if self._compression is None:
            return default_workers()
        return processors() if processors() > ENOUGH_FOR_THREADS else 0

    def _cache_pages(self, size: int | None) -> int:
        ram = max(self._total, self._guest.machine.page_size)
        wanted = min(DEFAULT_SIZE, ram) if size is None else size
        return cache_pages(wanted, self._guest.machine.page_size, ram)

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
        self.states.to(MigrationStatus.SETUP)
        self._channel = self._connect(uri)
        return_path = self._parameters.return_path and self._channel.bidirectional
        # Section ids, names and what is sent before RAM do not change while the guest runs.
        state = self._guest.save_devices()
        self._processes.start(state.ram_section_id, self._channel, return_path=return_path)
        self._report.meter.begin("total")
        self._report.meter.begin("setup")
        self._crew.on_tick = self._tick
        self._processes.write(stream.opening(self._guest, state, return_path))
        # Workers have their own rings: their first slot must not overtake this.
        self._processes.flush()
        self._report.meter.end("setup")
        self.on_round(1)
        self.states.to(MigrationStatus.ACTIVE)
        self._send_ram(return_path)
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

    def _send_ram(self, return_path: bool) -> None:
        """Send rounds while the guest runs, then the last round of the paused guest."""
        self._converge()
        if return_path and self._say_hello() and self._guest.running:
            # The guest kept writing while the answer was on its way.
            self._adapt(self._send_round(tracked=True))
            self._converge()
        self._report.note_downtime()
        self._report.meter.begin("downtime")
        self.on_switchover()
        if self._guest.running:
            self._guest.pause()
            self._paused_here = True
            self._note_progress()
            self._processes.limits.set("max_bandwidth", 0)
        self._release_guest()
        if self._parameters.pause_before_switchover:
            self.states.to(MigrationStatus.PRE_SWITCHOVER)
            self._crew.wait_fd(self._proceed.fileno())
            self.states.to(MigrationStatus.DEVICE)
            self._note_progress()
        self._send_round(tracked=False)

    def _converge(self) -> None:
        while self._guest.running and not self._should_switch_over():
            self._adapt(self._send_round(tracked=True))

    def _say_hello(self) -> bool:
        """Make sure that the destination's answers arrive, before the guest is paused.

        Return whether the destination took a noticeable time to answer. Raises MigrationError if it
        does not answer within HELLO_TIMEOUT.
        """
        asked = time.monotonic()
        try:
            self._peer = self._processes.greet(HELLO_TIMEOUT)
        except SilenceError:
            raise MigrationError(
                f"the destination did not answer a PING for {HELLO_TIMEOUT:.0f} s; if its answers"
                " cannot arrive, say --no-return-path"
            ) from None
        return time.monotonic() > asked + HELLO_IS_QUICK

    def _should_switch_over(self) -> bool:
        forced = self.on_stall is OnStall.SWITCHOVER and self._stall.stalled
        return forced or self._convergence.should_switch_over(self._bandwidth)

    @property
    def _bandwidth(self) -> float:
        return self._report.meter.bandwidth

    def _send_round(self, *, tracked: bool) -> Round:
        if self._report.round:
            self.on_round(self._report.round + 1)
        self._report.round_begins()
        self._processes.start_round(StartRound(self._report.round, tracked))
        self._crew.wait_for(RoundSent)
        done = self._report.round_ends()
        self._convergence.round_done(done)
        return done

    def _adapt(self, done: Round) -> None:
        """Throttle the guest if it dirties RAM too fast; report a stall if that does not help."""
        self._report.note_forecast()
        throttle = self._report.throttle
        if throttle is not None:
            before = throttle.percentage
            throttle.round_done(done)
            if throttle.percentage != before:
                self._guest.throttle(throttle.percentage)
        self._stall.round_done(done)
        if throttle is not None and not throttle.at_maximum:
            self._stall.begin_again()
        self._tell_stall()

    def _tell_stall(self) -> None:
        if not self._stall.stalled or self._convergence.should_switch_over(self._bandwidth):
            self._report.stall = None
            return
        if self._report.stall is None:
            self._report.stall = self._report.explain_stall()
            self._on_progress(self.figures())
        if self.on_stall is OnStall.CANCEL:
            raise MigrationCancelledError(f"cancelled: {self._report.stall.reason}")

    def _hand_over(self, return_path: bool) -> None:
        """Send the device state, then the end of the stream, which passes the guest on."""
        state = self._guest.save_devices(running=self._paused_here)
        self._processes.write(stream.ram_end(state))
        self._processes.write(stream.devices(state))
        self._processes.flush()
        assert self._channel is not None
        job = SourceJob(
            closing=self._processes.framed(stream.closing(state)),
            peer=self._peer,
            return_path=return_path,
            resume=self._paused_here,
            confirm=self._processes.word(Word.CONFIRM),
            abort=self._processes.word(Word.ABORT),
            answers=self._processes.let_go(),
        )
        wishes = Wishes(lambda: self._cancel_asked, lambda: self._leave_asked)
        # From here on, the guest's process resumes the guest if it stays.
        paused_here, self._paused_here = self._paused_here, False
        self._conclude(lead(self._guest, self._channel, job, wishes, self._tick))
        try:
            self._channel.close()
        except ChannelError:
            # Only a command that reads the stream can fail here, and then it does not have the
            # guest.
            if paused_here:
                self._guest.resume()
            raise

    def _conclude(self, handed: Handed) -> None:
        """Raise the error that describes the outcome, unless the guest arrived."""
        outcome = handed.outcome
        if outcome is not None and outcome.state is Source.GONE:
            return
        assert self._channel is not None
        self._channel.drop()
        if outcome is None:
            raise UnconfirmedError(
                "the guest's process does not answer and is left alone; it finds out by itself"
                " whether the destination has the guest, and runs it only if not"
            )
        if outcome.state is Source.UNCONFIRMED:
            raise UnconfirmedError(
                "the destination has the whole guest, but did not confirm that it runs"
                f" ({outcome.reason}); look there: vmferry receive --resume starts a kept guest"
            )
        if handed.dead:
            raise MigrationError(
                "the guest's process died while it was handed over; if the destination says that it"
                " keeps the guest, vmferry receive --resume starts it there"
            )
        if self._cancel_asked and outcome.reason == "cancelled":
            raise MigrationCancelledError("cancelled")
        raise MigrationError(outcome.reason)

    def _note_progress(self) -> None:
        self._still_since = (self._processes.sent("transferred"), time.monotonic())

    def _check_host(self) -> None:
        """Raise MigrationError if the destination's host is gone.

        The kernel would notice only after 15 minutes.
        """
        if self._channel is not None and self._channel.silence > GONE_AFTER:
            raise MigrationError(f"the destination's host has been silent for {GONE_AFTER:.0f} s")

    def _check_still(self) -> None:
        """Raise MigrationError if the destination has stopped reading from a paused guest.

        The destination cannot have started the guest, because the end of the stream was not sent.
        """
        sent, since = self._still_since
        if not self._paused_here or self.states.state is MigrationStatus.PRE_SWITCHOVER:
            return
        if self._processes.sent("transferred") != sent:
            self._note_progress()
        elif time.monotonic() > since + STILL_TIMEOUT:
            raise MigrationError(f"the destination took nothing for {STILL_TIMEOUT:.0f} s")

    def _check_cancel(self) -> None:
        if self._cancel_asked:
            raise MigrationCancelledError("cancelled")

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
        try:
            if self._paused_here:
                self._guest.resume()
            self._release_guest()
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
        self._wake.close()
        self._proceed.close()

    def _release_guest(self) -> None:
        """Remove the throttle, so that the guest runs at full speed wherever it is."""
        throttle = self._report.throttle
        if throttle is not None and throttle.percentage:
            throttle.release()
            self._guest.throttle(0)

    def _tick(self) -> None:
        self._check_still()
        self._check_host()
        self._report.window()
        self._on_progress(self.figures())

    def figures(self) -> Figures:
        """Return the present figures."""
        return self._report.figures(self.states.state)
