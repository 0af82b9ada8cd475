"""Keep the run state of the guest, under QEMU's names, and decide who may change it when.

Commands arrive on one thread and the switchover of a migration from another. Neither may find the
guest running when it relies on a paused guest (law: the last round runs on a paused guest).
"""

from __future__ import annotations

import threading
from enum import Enum

from ..guest.base import Guest
from .errors import QmpError


class RunState(str, Enum):
    """The run states, named as in QMP's `query-status`."""

    PRELAUNCH = "prelaunch"
    RUNNING = "running"
    PAUSED = "paused"
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"

    def __str__(self) -> str:
        return self.value


class RunControl:
    """The control that stops and continues the guest, when a migration allows that."""

    def __init__(self, guest: Guest, *, incoming: bool, paused: bool) -> None:
        self._guest = guest
        self._lock = threading.RLock()
        self._before = RunState.PAUSED
        self.autostart = not paused
        """True if a guest that arrives is started."""
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
        """Return the present run state."""
        return self._state

    def stop(self) -> None:
        """Stop the guest; one that has not arrived yet will then not be started."""
        with self._lock:
            if self._state is RunState.RUNNING:
                self._guest.pause()
                self._state = RunState.PAUSED
            elif self._state is RunState.INMIGRATE:
                self.autostart = False

    def cont(self) -> None:
        """Let the guest run, even if it migrated away. Raises QmpError, GuestError."""
        with self._lock:
            if self._state is RunState.FINISH_MIGRATE:
                raise QmpError("Migration is not finalized yet")
            if self._state is RunState.INMIGRATE:
                self.autostart = True
            elif self._state is not RunState.RUNNING:
                self._guest.resume()
                self._state = RunState.RUNNING

    def follow(self, running: bool) -> None:
        """Record that the guest's hypervisor has started or stopped it."""
        with self._lock:
            if self._state in (RunState.RUNNING, RunState.PAUSED, RunState.PRELAUNCH):
                self._state = RunState.RUNNING if running else RunState.PAUSED

    def switchover(self) -> None:
        """Reserve stopping and resuming the guest for the migration from now on."""
        with self._lock:
            self._before, self._state = self._state, RunState.FINISH_MIGRATE

    def left(self) -> None:
        """Record that the guest migrated away."""
        with self._lock:
            self._state = RunState.POSTMIGRATE

    def wait_for_guest(self) -> None:
        """Record that no guest is here, and one is to arrive."""
        with self._lock:
            self._state = RunState.INMIGRATE

    def stayed(self) -> None:
        """Restore the state before the switchover, because the guest did not migrate away."""
        with self._lock:
            if self._state is RunState.FINISH_MIGRATE:
                stopped = self._before is not RunState.RUNNING and not self._guest.moves_itself
                self._state = self._before if stopped else self._as_it_is()

    def arrived(self) -> None:
        """Record that the guest has arrived."""
        with self._lock:
            self._state = self._as_it_is()
