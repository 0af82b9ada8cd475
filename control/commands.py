"""Keep the table of commands: a name, its arguments, and the function that executes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .arguments import Argument, check_arguments
from .errors import CommandNotFoundError, QmpError

if TYPE_CHECKING:
    from .service import Service


class Caller(Protocol):
    """The client that sent a command."""

    def take_fd(self) -> int | None:
        """Return a descriptor that the client passed, owned by the caller, or None."""


@dataclass(frozen=True)
class Call:
    """One call of a command: the service that it works on, and the client that sent it."""

    service: Service
    caller: Caller


Function = Callable[..., Any]
"""A function that takes the Call and the arguments by name, and returns the result.

The result may be an awaitable.
"""


@dataclass(frozen=True)
class Command:
    """One command with its function and declared arguments."""

    name: str
    function: Function
    arguments: tuple[Argument, ...]


COMMANDS: dict[str, Command] = {}
"""All commands by name."""

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


def command(name: str, *arguments: Argument) -> Callable[[Function], Function]:
    """Return a decorator that puts a function into the table."""

    def put(function: Function) -> Function:
        COMMANDS[name] = Command(name, function, arguments)
        return function

    return put


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
