"""Commands that query and change the guest's run state."""

from __future__ import annotations

from typing import Any

from .command import Call, command
from .run_state import RunState


@command("query-status")
def query_status(call: Call) -> Any:
    """Return the run state."""
    state = call.service.run_control.state
    running = state is RunState.RUNNING
    return {"status": str(state), "running": running, "singlestep": False}


@command("stop")
def stop(call: Call) -> None:
    """Stop the guest."""
    call.service.run_control.stop()
    _tell_incoming(call)


@command("cont")
def cont(call: Call) -> None:
    """Let the guest run."""
    call.service.run_control.cont()
    call.service.announce_if_running()
    _tell_incoming(call)


def _tell_incoming(call: Call) -> None:
    if call.service.incoming is not None:
        call.service.incoming.set_autostart()
