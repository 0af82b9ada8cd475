"""The run state of the guest, under QEMU's names, and who may change it when.

Commands come from one thread and the switchover of a migration from another; neither must find the
guest running when it counts on it standing still (law: the last round runs on a paused guest).
"""

from __future__ import annotations

import threading
from enum import Enum

from ..guest.base import Guest
from .errors import QmpError


class RunState(str, Enum):
    """As QMP's `query-status` names them."""

    PRELAUNCH = "prelaunch"
    RUNNING = "running"
    PAUSED = "paused"
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"

    def __str__(self) -> str:
        return self.value


class RunControl:
    """Stops and continues the guest, where a migration lets it."""

    def __init__(self, guest: Guest, *, incoming: bool, paused: bool) -> None:
        self._guest = guest
        self._lock = threading.RLock()
        self._before = RunState.PAUSED
        self.autostart = not paused
        """Whether a guest that arrives shall run."""
        if incoming:
            self._state = RunState.INMIGRATE
        else:
            if paused and guest.running:
                guest.pause()
            self._state = RunState.PRELAUNCH if paused else self._as_it_is()

    def _as_it_is(self) -> RunState:
        return RunState.RUNNING if self._guest.running else RunState.PAUSED

    @property
    def state(self) -> RunState:
        """The state now."""
        return self._state

    def stop(self) -> None:
        """Stop the guest; one that is still to arrive shall not run then."""
        with self._lock:
            if self._state is RunState.RUNNING:
                self._guest.pause()
                self._state = RunState.PAUSED
            elif self._state is RunState.INMIGRATE:
                self.autostart = False

    def cont(self) -> None:
        """Let it run, also after it migrated away. Raises QmpError, GuestError."""
        with self._lock:
            if self._state is RunState.FINISH_MIGRATE:
                raise QmpError("Migration is not finalized yet")
            if self._state is RunState.INMIGRATE:
                self.autostart = True
            elif self._state is not RunState.RUNNING:
                self._guest.resume()
                self._state = RunState.RUNNING

    def switchover(self) -> None:
        """From now on only the migration stops and resumes the guest."""
        with self._lock:
            self._before, self._state = self._state, RunState.FINISH_MIGRATE

    def left(self) -> None:
        """The guest migrated away."""
        with self._lock:
            self._state = RunState.POSTMIGRATE

    def wait_for_guest(self) -> None:
        """Note that no guest is here, and one is to come."""
        with self._lock:
            self._state = RunState.INMIGRATE

    def stayed(self) -> None:
        """It did not, and is again what it was before the switchover."""
        with self._lock:
            if self._state is RunState.FINISH_MIGRATE:
                stopped = self._before is not RunState.RUNNING
                self._state = self._before if stopped else self._as_it_is()

    def arrived(self) -> None:
        """The guest migrated here."""
        with self._lock:
            self._state = self._as_it_is()
