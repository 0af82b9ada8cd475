"""The state machine of a migration."""

from __future__ import annotations

import pytest
from vmferry.protocol.states import (
    TRANSITIONS,
    IllegalTransitionError,
    MigrationStatus,
    StateMachine,
)


@pytest.mark.parametrize("old", list(MigrationStatus))
@pytest.mark.parametrize("new", list(MigrationStatus))
def test_table_alone_decides(old: MigrationStatus, new: MigrationStatus) -> None:
    """Broken: a migration could leave the table of transitions, or not follow it."""
    machine = StateMachine()
    machine._state = old
    if new in TRANSITIONS[old]:
        machine.to(new)
        assert machine.state is new
    else:
        with pytest.raises(IllegalTransitionError, match=f"{old} cannot become {new}"):
            machine.to(new)
        assert machine.state is old


def test_listeners_hear_each_change_once_in_order() -> None:
    """Broken: a listener that changes the state would let others hear changes reversed."""
    machine = StateMachine()
    heard: list[tuple[str, str]] = []

    def fail(_: MigrationStatus, new: MigrationStatus) -> None:
        if new is MigrationStatus.ACTIVE:
            machine.to(MigrationStatus.FAILED)

    machine.add_listener(fail)
    machine.add_listener(lambda old, new: heard.append((old.value, new.value)))
    machine.to(MigrationStatus.SETUP)
    machine.to(MigrationStatus.ACTIVE)
    assert heard == [("none", "setup"), ("setup", "active"), ("active", "failed")]
