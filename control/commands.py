"""List the commands of the service, and execute them by name."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from . import (
    announcing_commands,
    guest_commands,
    migration_commands,
    monitor_commands,
    setting_commands,
)
from .arguments import check_arguments
from .command import Call, Command, command
from .errors import CommandNotFoundError, QmpError

REFUSED = dict.fromkeys(
    (
        "system_reset",
        "system_powerdown",
        "system_wakeup",
        "inject-nmi",
        "send-key",
        "set-action",
        "watchdog-set-action",
    ),
    "nothing here acts on the machine itself, only on its migration",
) | dict.fromkeys(
    ("migrate-recover", "migrate-start-postcopy"),
    "there is no postcopy: a guest runs at the destination when all of it has arrived",
)
"""Commands of QEMU that are known but not implemented, and why."""


@command("query-commands")
def query_commands(_: Call) -> Any:
    """Return the names of all commands."""
    return [{"name": name} for name in sorted(COMMANDS)]


_MODULES = (
    announcing_commands,
    guest_commands,
    migration_commands,
    monitor_commands,
    setting_commands,
)
COMMANDS: dict[str, Command] = {
    each.name: each
    for each in (query_commands, *(value for module in _MODULES for value in vars(module).values()))
    if isinstance(each, Command)
}
"""All commands by name."""


async def execute(call: Call, name: str, given: dict[str, Any]) -> Any:
    """Execute a command and return its result. Raises QmpError."""
    if name in REFUSED:
        raise QmpError(f"The command {name} is refused: {REFUSED[name]}")
    if name not in COMMANDS:
        raise CommandNotFoundError(f"The command {name} has not been found")
    found = COMMANDS[name]
    result = found.function(call, **check_arguments(found.arguments, given))
    if isinstance(result, Awaitable):
        result = await result
    return {} if result is None else result
