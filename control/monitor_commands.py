"""Commands about the service itself: its version, its events, and its end."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from .command import Call, command
from .events import EVENTS

VERSION = {
    "qemu": {"major": 7, "minor": 2, "micro": 0},
    "package": f"vmferry-{version('vmferry')}",
}
"""The QEMU version whose commands these are, and the version of vmferry."""


@command("query-version")
def query_version(_: Call) -> Any:
    """Return the same version as in the greeting."""
    return VERSION


@command("query-events")
def query_events(_: Call) -> Any:
    """Return the names of all events."""
    return [{"name": name} for name in EVENTS]


@command("quit")
def quit_service(call: Call) -> None:
    """End the service, and the guest with it."""
    call.service.quit("host-qmp-quit")
