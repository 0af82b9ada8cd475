"""Run the outgoing migrations of one guest, one after another, each in its own thread."""

from __future__ import annotations

import os
import threading
from typing import Any

from ..guest.base import Guest
from ..guest.errors import GuestError, MigrationError
from ..protocol.errors import ParameterError
from ..protocol.states import MigrationStatus
from ..sender.errors import UnconfirmedError
from ..sender.figures import Figures
from ..sender.page_cache import CacheSizeError
from ..sender.stall import Stall
from ..transport.settings import Disks
from ..transport.uri import UnknownSchemeError, UriError, parse_uri
from .capabilities import Capabilities
from .descriptors import Descriptors
from .errors import QmpError
from .extensions import under_own_names
from .figures import laid_out
from .migrating import AnySender, new_sender
from .migration_events import MigrationEvents
from .parameters import Parameters
from .run_state import RunControl, RunState
from .send_parameters import change_limits, send_parameters

_S = MigrationStatus
_OVER = (_S.NONE, _S.COMPLETED, _S.FAILED, _S.CANCELLED)


class Outgoing:
    """The outgoing migrations, as `migrate`, `query-migrate` and related commands use them.

    A status that ends a migration is visible only after everything of that migration is released.
    """

    def __init__(
        self,
        guest: Guest,
        run: RunControl,
        settings: tuple[Capabilities, Parameters],
        descriptors: Descriptors,
        events: MigrationEvents,
    ) -> None:
        self._guest = guest
        self._run = run
        self._capabilities, self._parameters = settings
        self._descriptors = descriptors
        self._events = events
        self._status = _S.NONE
        self._sender: AnySender | None = None
        self._thread: threading.Thread | None = None
        self._passes = 0
        self._stall: Stall | None = None
        self._stall_told = False
        self._fd: int | None = None
        self._answer: dict[str, Any] = {}
        """The figures of the finished migration."""

    @property
    def status(self) -> MigrationStatus:
        """Return the status of the present migration, or of the last one."""
        return self._status

    @property
    def active(self) -> bool:
        """Return whether a migration is under way."""
        return self._status not in _OVER

    def refuse_if_active(self) -> None:
        """Raise QmpError while a migration is under way."""
        if self.active:
            raise QmpError("There's a migration process in progress")

    def start(self, uri: str, disks: Disks) -> None:
        """Start a migration, of these disks, too. Raises QmpError if it cannot even be tried."""
        self.refuse_if_active()
        if self._run.state is RunState.INMIGRATE:
            raise QmpError("Guest is waiting for an incoming migration")
        if self._run.state is RunState.POSTMIGRATE:
            raise QmpError("Can't migrate the vm that was paused due to previous migration")
        if self._guest.blockers:
            raise QmpError(self._guest.blockers[0])
        self._sender, self._passes, self._stall, self._stall_told = None, 0, None, False
        self._change(_S.SETUP)
        try:
            uri, self._fd = self._descriptors.resolve(uri)
            parse_uri(uri)
            self._sender = self._new_sender(uri, disks)
        except (UriError, GuestError, ParameterError, CacheSizeError) as error:
            self._close_fd()
            message = str(error)
            if isinstance(error, UnknownSchemeError):
                message = f"Parameter 'uri' expects a valid migration protocol: {error}"
            self._over(_S.FAILED, {"error-desc": message})
            raise QmpError(message) from error
        self._thread = threading.Thread(target=self._migrate, args=(self._sender,))
        self._thread.start()

    def _new_sender(self, uri: str, disks: Disks) -> AnySender:
        parameters = send_parameters(self._guest, self._parameters, self._capabilities, disks)
        sender = new_sender(self._guest, uri, parameters)
        sender.on_round = self._round_begins
        sender.on_switchover = self._run.switchover
        sender.states.add_listener(self._changed)
        return sender

    def _migrate(self, sender: AnySender) -> None:
        """Run one migration from beginning to end, in the thread."""
        try:
            figures = sender.run(self._look)
        except UnconfirmedError as error:
            # As in QEMU, a guest that the destination has whole has left, whatever happens to it.
            self._ended(
                _S.COMPLETED, laid_out(sender.figures(), self._passes) | {"error-desc": str(error)}
            )
        except MigrationError as error:
            cancelled = sender.states.state is _S.CANCELLED
            self._ended(_S.CANCELLED if cancelled else _S.FAILED, {"error-desc": str(error)})
        except Exception as error:
            # A fault in the program costs the migration, not the guest.
            self._ended(_S.FAILED, {"error-desc": f"{type(error).__name__}: {error}"})
            raise
        else:
            self._ended(_S.COMPLETED, laid_out(figures, self._passes))

    def _ended(self, status: MigrationStatus, answer: dict[str, Any]) -> None:
        self._close_fd()
        if status is _S.COMPLETED:
            self._run.left()
        else:
            self._run.stayed()
        # A stall may be the reason for the cancel, so it stays visible.
        cancelled = under_own_names({}, self._stall)
        self._over(status, cancelled if status is _S.CANCELLED else answer)

    def _over(self, status: MigrationStatus, answer: dict[str, Any]) -> None:
        self._answer = answer
        self._change(status)

    def _changed(self, _: MigrationStatus, new: MigrationStatus) -> None:
        """Follow the sender's state; `_ended` reports the states that end a migration."""
        if new is not _S.SETUP:
            # The sender has connected, or never will: the channel has its own descriptor.
            self._close_fd()
        if new not in (_S.SETUP, *_OVER):
            self._change(new)

    def _change(self, new: MigrationStatus) -> None:
        self._status = new
        self._events.changed(new)

    def _round_begins(self, number: int) -> None:
        self._passes = number
        self._events.round_begins(number)

    def _look(self, figures: Figures) -> None:
        """Emit one event when a stall begins for the first time."""
        self._stall = figures.stall
        if figures.stall is not None and not self._stall_told:
            self._stall_told = True
            self._events.stalls(figures.stall)

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def forget(self) -> None:
        """Forget the finished migration: `query` returns nothing until the next one."""
        self._status, self._answer = _S.NONE, {}

    def cancel(self) -> None:
        """Cancel the migration, if there is one and it is not too late."""
        if self.active and self._sender is not None:
            self._sender.cancel()

    def proceed(self, state: str) -> None:
        """Continue from `state`. Raises QmpError if the migration is not in it."""
        if state != self._status:
            raise QmpError(f"Migration not in expected state: {self._status}")
        if self._status is _S.PRE_SWITCHOVER:
            assert self._sender is not None
            self._sender.proceed()

    def apply_parameters(self) -> None:
        """Apply changed limits to the running migration. Raises CacheSizeError."""
        if not self.active or self._sender is None:
            return
        paused = self._run.state is RunState.FINISH_MIGRATE
        change_limits(self._sender.limits, self._guest, self._parameters, paused=paused)

    def query(self) -> dict[str, Any]:
        """Return the migration as `query-migrate` lays it out."""
        status = self._status
        if status is _S.NONE:
            return {}
        answer = {"status": str(status)}
        if status in _OVER:
            return self._answer | answer
        if status is _S.SETUP:
            return answer
        assert self._sender is not None
        return laid_out(self._sender.figures(), self._passes) | answer

    def finish(self) -> None:
        """Cancel the migration, and wait for its end."""
        if self.active and self._sender is not None:
            self._sender.leave()
        if self._thread is not None:
            self._thread.join()
