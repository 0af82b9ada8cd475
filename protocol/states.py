"""Hold the state of a migration, which changes only by a table and is reported once per change."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class MigrationStatus(str, Enum):
    """The states of a migration, named as in QMP's `query-migrate`."""

    NONE = "none"
    SETUP = "setup"
    ACTIVE = "active"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


_S = MigrationStatus
TRANSITIONS: dict[MigrationStatus, frozenset[MigrationStatus]] = {
    _S.NONE: frozenset({_S.SETUP}),
    _S.SETUP: frozenset({_S.ACTIVE, _S.CANCELLING, _S.FAILED}),
    _S.ACTIVE: frozenset({_S.PRE_SWITCHOVER, _S.DEVICE, _S.COMPLETED, _S.CANCELLING, _S.FAILED}),
    _S.PRE_SWITCHOVER: frozenset({_S.DEVICE, _S.CANCELLING, _S.FAILED}),
    _S.DEVICE: frozenset({_S.COMPLETED, _S.CANCELLING, _S.FAILED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.COMPLETED: frozenset({_S.SETUP}),
    _S.FAILED: frozenset({_S.SETUP}),
    _S.CANCELLED: frozenset({_S.SETUP}),
}
"""States that may follow each state."""

Listener = Callable[[MigrationStatus, MigrationStatus], None]


class IllegalTransitionError(Exception):
    """A change of state that the table does not allow: a fault in the program."""


class StateMachine:
    """The state of one migration, which reports each change to listeners once, in order."""

    def __init__(self) -> None:
        self._state = MigrationStatus.NONE
        self._listeners: list[Listener] = []
        self._changes: list[tuple[MigrationStatus, MigrationStatus]] = []

    @property
    def state(self) -> MigrationStatus:
        """Return the current state."""
        return self._state

    def add_listener(self, listener: Listener) -> None:
        """Call `listener(old, new)` at every change from now on."""
        self._listeners.append(listener)

    def to(self, new: MigrationStatus) -> None:
        """Change the state to `new`.

        Raises IllegalTransitionError, without a change, if the table does not allow it.
        """
        if new not in TRANSITIONS[self._state]:
            raise IllegalTransitionError(f"a migration that is {self._state} cannot become {new}")
        self._changes.append((self._state, new))
        self._state = new
        if len(self._changes) == 1:
            self._tell()

    def end_early(self, *, cancelled: bool) -> None:
        """Change the state to CANCELLED, by way of CANCELLING, or to FAILED.

        A migration that has not begun stays so.
        """
        if self._state is MigrationStatus.NONE:
            return
        if cancelled:
            self.to(MigrationStatus.CANCELLING)
            self.to(MigrationStatus.CANCELLED)
        else:
            self.to(MigrationStatus.FAILED)

    def _tell(self) -> None:
        # A listener may itself change the state: that change waits until all listeners got this
        # one.
        try:
            while self._changes:
                for listener in list(self._listeners):
                    listener(*self._changes[0])
                self._changes.pop(0)
        finally:
            self._changes.clear()
