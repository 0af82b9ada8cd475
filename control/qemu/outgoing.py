"""Run an outgoing migration of a running QEMU; `sender.coordinator` is the same for other guests.

    checks -> settings -> connection -> `migrate`: QEMU sends, and `query-migrate` is watched
        -> completed: the guest is at the destination, and QEMU keeps what was here, stopped

QEMU decides when to stop the guest, and on the return path it hears that the destination has it.
If anything fails before, QEMU lets its guest run on, its settings are as they were, and the next
attempt may follow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from ...guest.errors import GuestError, MigrationCancelledError, MigrationError
from ...guest.qemu import queries
from ...guest.qemu.checks import check_source
from ...guest.qemu.guest import QemuGuest
from ...guest.qemu.monitor import GoneError, QemuError
from ...guest.qemu.settings import Settings
from ...guest.requests import Requests
from ...protocol.errors import ParameterError
from ...protocol.states import MigrationStatus, StateMachine
from ...relay.parameters import RelayParameters
from ...sender.errors import UnconfirmedError
from ...sender.figures import CompressionFigures, Figures
from ...sender.parameters import SendParameters
from ...transport.channel import ChannelError
from ...transport.compression import Compression, parse_compression
from ...transport.crew import Crew, CrewError
from ...transport.settings import DOWNTIME_LIMIT, OnStall
from ...transport.shared import Bell, wait_readable
from ...transport.uri import UriError, parse_uri
from .carried import Carried
from .doubt import Doubt
from .keeper import Keeper
from .limits import QemuLimits
from .linked import Linked
from .rounds import Rounds
from .route import Direct, Itself, Route
from .wanted import check_parameters, goes_both_ways, wanted

_log = logging.getLogger(__name__)
_S = MigrationStatus

PERIOD = 0.1
"""Seconds between two queries; a change of state is asked for at once."""
IN_DOUBT = 5.0
"""Seconds after which a command that must end leaves a guest of which it is not known where it is.
"""
ENDS_WITHIN = 60.0
"""Seconds that QEMU may take to end a migration that was cancelled, and to let the guest run."""
_ENDED = (_S.COMPLETED.value, _S.FAILED.value, _S.CANCELLED.value)
_LAST = (_S.PRE_SWITCHOVER, _S.DEVICE)


class QemuSender:
    """One outgoing migration of the guest of a QEMU to `uri`; call `run` once.

    `link`: a far relay is at `uri`, and these are the parameters of the link to it; `note` takes a
    line when something happens to that. Raises ParameterError and UriError for what a QEMU cannot
    do.
    """

    def __init__(
        self,
        guest: QemuGuest,
        uri: str,
        parameters: SendParameters | None = None,
        link: RelayParameters | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._link, self._note = link, note
        self._monitor = guest.monitor
        self._parameters = parameters or SendParameters()
        self._uri = parse_uri(uri)
        check_parameters(self._parameters, self._uri)
        self.states = StateMachine()
        self.states.add_listener(lambda old, new: _log.info("%s -> %s", old.value, new.value))
        self.on_round: Callable[[int], None] = lambda _: None
        """Called with the number, from 1 on, of each round that begins."""
        self.on_switchover: Callable[[], None] = lambda: None
        """Called when the guest is being stopped, or has been."""
        self.limits = QemuLimits(self._parameters)
        """The limits of this migration, which may be changed while it runs."""
        self._rounds = Rounds(self._parameters, lambda: self.limits.max_bandwidth)
        self._requests = Requests()
        self._crew = Crew(self._requests.fileno(), self._requests.check)
        self._bell = Bell()
        self._route: Route | None = None
        self._settings: Settings | None = None
        self._keeper: Keeper | None = None
        self._on_progress: Callable[[Figures], None] = lambda _: None
        self._was_running = False
        self._under_way = False
        self._proceeds = False
        self._compressed: Callable[[], CompressionFigures | None] = lambda: None
        self._doubt = Doubt(self._monitor)
        self._cancelled_at: float | None = None
        self._reason = ""
        self._undelivered = False
        self._switched = False
        self._stall_told = False

    def cancel(self) -> None:
        """Stop the migration as soon as possible; callable from any thread or signal handler."""
        self._requests.cancel()

    def leave(self) -> None:
        """Cancel, and end within seconds even if it is not known which end has the guest."""
        self._requests.leave()

    def proceed(self) -> None:
        """Continue from `pre-switchover`, where `pause_before_switchover` stops the migration."""
        self._proceeds = True
        self._bell.set()

    def run(self, on_progress: Callable[[Figures], None] | None = None) -> Figures:
        """Migrate the guest and return the final figures.

        Raises MigrationError if the guest stays at the source; the guest is then as it was before.
        """
        self._on_progress = on_progress or self._on_progress
        try:
            self._migrate()
        except BaseException as error:
            self._give_up(error)
            if isinstance(error, (ChannelError, UriError, GuestError, CrewError, ParameterError)):
                raise MigrationError(str(error)) from error
            raise
        finally:
            self._monitor.remove_listener(self._hear)
            self._crew.stop()
            if self._keeper is not None:
                self._keeper.leave()
            self._requests.close()
            self._bell.close()
        final = self.figures()
        self._on_progress(final)
        return final

    def _migrate(self) -> None:
        check_source(self._monitor)
        self._was_running = queries.is_running(self._monitor)
        self._settings = Settings(self._monitor)
        return_path = self._parameters.return_path and goes_both_ways(self._uri)
        compression = parse_compression(self._parameters.compress)
        paced_here = compression is not None or self._link is not None
        wanted_now = wanted(self._parameters, return_path=return_path, paced_here=paced_here)
        self._settings.change(wanted_now)
        self._keeper = Keeper(self._monitor.path, self._settings.before)
        self.states.to(_S.SETUP)
        self._route = self._new_route(compression)
        uri = self._route.open(self._monitor, self._crew.wait_fd)
        self._monitor.add_listener(self._hear)
        self._under_way = True
        self._monitor.ask("migrate", uri=uri)
        told = self._watch()
        self._under_way = False
        self._conclude(told)

    def _new_route(self, compression: Compression | None) -> Route:
        assert self._settings is not None
        pace: Callable[[int], None] = partial(self._settings.adjust, "max-bandwidth")
        route: Route
        if self._parameters.multifd_channels or self._parameters.mapped_ram:
            route = Itself(self._uri)
        elif self._link is not None:
            route = linked = Linked(self._link, self._note)
            # A relay's limit is set when it begins.
            pace, self._compressed = (lambda _: None), linked.figures
        elif compression is None:
            route = Direct(self._uri)
        else:
            route = carried = Carried(
                self._uri,
                compression,
                self._parameters.max_bandwidth,
                answers=self._parameters.return_path and goes_both_ways(self._uri),
            )
            pace = carried.set_max_bandwidth
            self._compressed = carried.figures
        self.limits.begin(self._settings, self._rounds, pace)
        return route

    def _hear(self, name: str, _: dict[str, Any]) -> None:
        if name.startswith("MIGRATION"):
            self._bell.set()
        elif name == "STOP" and self._under_way and self._route is not None:
            self._route.guest_stopped()

    # While QEMU sends.

    def _watch(self) -> dict[str, Any]:
        """Return what QEMU says of its migration once that has ended."""
        assert self._route is not None
        while True:
            told = queries.migration(self._monitor)
            if told["status"] in _ENDED:
                return self._final(told)
            self._follow(told)
            self._react(told)
            # A request stays readable, and is looked at in each turn.
            asked = [] if self._requests.cancelled else [self._requests.fileno()]
            wait_readable([self._bell.fileno(), *asked, *self._route.fds()], PERIOD)
            self._route.look()
            self._bell.clear()

    def _final(self, told: dict[str, Any]) -> dict[str, Any]:
        """Return the last answer, once QEMU has set its times a moment after the state."""
        deadline = time.monotonic() + 1
        while told["status"] == _S.COMPLETED and not told.get("total-time"):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
            told = queries.migration(self._monitor)
        self._rounds.look(told)
        return told

    def _follow(self, told: dict[str, Any]) -> None:
        """Take in where QEMU is."""
        before = self._rounds.number
        self._rounds.look(told)
        try:
            status = _S(told["status"])
        except ValueError:
            # What only some migrations reach, such as wait-unplug.
            status = _S.ACTIVE
        if status in (_S.ACTIVE, *_LAST) and self.states.state is _S.SETUP:
            self.states.to(_S.ACTIVE)
        for number in range(before + 1, self._rounds.number + 1):
            self.on_round(number)
        if status in _LAST and status is not self.states.state:
            self._switches()
            self.states.to(status)
        self._on_progress(self.figures())

    def _switches(self) -> None:
        if not self._switched:
            self._switched = True
            self.on_switchover()

    def _react(self, told: dict[str, Any]) -> None:
        """Do what the user wants, now or on a stall."""
        if self._proceeds and told["status"] == _S.PRE_SWITCHOVER:
            self._proceeds = False
            self._monitor.ask("migrate-continue", state=_S.PRE_SWITCHOVER.value)
        stall = self._rounds.stall
        if stall is not None and not self._stall_told:
            self._stall_told = True
            if self.limits.on_stall is OnStall.CANCEL:
                self._reason = f": {stall.reason}"
                self._requests.cancel()
            elif self.limits.on_stall is OnStall.SWITCHOVER:
                self.limits.set_downtime_limit(DOWNTIME_LIMIT.most / 1000)
        if self._requests.cancelled:
            self._cancel(told)

    def _cancel(self, told: dict[str, Any]) -> None:
        """Cancel, unless the destination may have the whole guest: both would run then (law 5).

        Raises UnconfirmedError if the command has to end before that is known.
        """
        now = time.monotonic()
        self._cancelled_at = self._cancelled_at or now
        if not self._doubt.may_be_there(told):
            with suppress(QemuError):
                self._monitor.ask("migrate_cancel")
        elif self._requests.wishes().leave() and now > self._cancelled_at + IN_DOUBT:
            raise UnconfirmedError(
                f"the guest is being handed over to {self._uri}, which does not answer; look there:"
                f" if it does not run there, migrate_cancel at {self._monitor.path} lets it run on"
                " here"
            )

    # The end.

    def _conclude(self, told: dict[str, Any]) -> None:
        """Raise the error that describes how it ended, unless the guest has left."""
        assert self._route is not None
        status = told["status"]
        if status == _S.COMPLETED:
            try:
                self._route.completed()
            except ChannelError:
                self._undelivered = True
                raise
            if self.states.state is _S.SETUP:
                self.states.to(_S.ACTIVE)
            self._switches()
            # What fails from here on costs settings, and not the guest.
            with suppress(QemuError):
                self._restore()
            self.states.to(_S.COMPLETED)
        elif self._cancelled_at is not None:
            # Some versions call that a failure.
            raise MigrationCancelledError(f"cancelled{self._reason}")
        elif status == _S.CANCELLED:
            raise MigrationError("somebody else cancelled QEMU's migration")
        else:
            self._route.ask_why()
            why = told.get("error-desc") or "QEMU gives no reason"
            raise MigrationError(f"QEMU's migration failed: {why}; {self._route.log}")

    def _give_up(self, error: BaseException) -> None:
        """Make sure that the guest runs here again, and that QEMU's settings are as they were."""
        cancelled = isinstance(error, MigrationCancelledError)
        if self._route is not None:
            self._route.abort()
        try:
            if isinstance(error, UnconfirmedError):
                # With a migration that is still under way, the keeper restores them later.
                if not self._under_way:
                    self._restore()
            elif not isinstance(error, GoneError):
                self._stop_migration()
                self._run_on()
                self._restore()
        except QemuError as second:
            raise MigrationError(f"{error}; {second}") from error
        finally:
            self._fail(unconfirmed=isinstance(error, UnconfirmedError), cancelled=cancelled)

    def _fail(self, *, unconfirmed: bool, cancelled: bool) -> None:
        if unconfirmed and self.states.state is not _S.NONE:
            self.states.to(_S.COMPLETED)
        else:
            self.states.end_early(cancelled=cancelled)

    def _stop_migration(self) -> None:
        """Cancel a migration that is still under way, and wait until it has ended."""
        deadline = time.monotonic() + ENDS_WITHIN
        while self._under_way and time.monotonic() < deadline:
            told = queries.migration(self._monitor)
            if told["status"] not in queries.UNDER_WAY:
                self._under_way = False
            elif not self._doubt.may_be_there(told):
                with suppress(QemuError):
                    self._monitor.ask("migrate_cancel")
            time.sleep(0.02)

    def _run_on(self) -> None:
        """Wait until the guest runs again; let it run if what QEMU has sent did not arrive.

        A guest that QEMU has given up otherwise never runs here again by itself (law 5).
        """
        if not self._was_running or self._settings is None:
            return
        deadline = time.monotonic() + ENDS_WITHIN
        while not queries.is_running(self._monitor):
            state = queries.run_state(self._monitor)
            if state == queries.POSTMIGRATE and self._undelivered:
                self._monitor.ask("cont")
                return
            if state == queries.POSTMIGRATE or time.monotonic() > deadline:
                raise QemuError(f"the guest here is {state}: look whether the destination runs it")
            time.sleep(0.02)

    def _restore(self) -> None:
        if self._settings is not None:
            self._settings.restore()
        if self._keeper is not None:
            self._keeper.close()

    def figures(self) -> Figures:
        """Return the present figures."""
        self._rounds.compression = self._compressed()
        return self._rounds.figures(self.states.state)
