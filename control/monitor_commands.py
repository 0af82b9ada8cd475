"""Commands about the service itself: version, lists of commands and events, the end."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from .commands import COMMANDS, Call, command
from .events import EVENTS

VERSION = {
    "qemu": {"major": 7, "minor": 2, "micro": 0},
    "package": f"vmferry-{version('vmferry')}",
}
"""Whose commands these are, and who does them."""


@command("query-version")
def query_version(_: Call) -> Any:
    """As in the greeting."""
    return VERSION


@command("query-commands")
def query_commands(_: Call) -> Any:
    """Names of all commands."""
    return [{"name": name} for name in sorted(COMMANDS)]


@command("query-events")
def query_events(_: Call) -> Any:
    """Names of all events."""
    return [{"name": name} for name in EVENTS]


@command("quit")
def quit_service(call: Call) -> None:
    """End the service, and the guest with it."""
    call.service.quit("host-qmp-quit")
