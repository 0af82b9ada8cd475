"""Define what a command of the service is: a name, its arguments, and a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .arguments import Argument
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


def command(name: str, *arguments: Argument) -> Callable[[Function], Command]:
    """Return a decorator that makes a command of a function."""
    return lambda function: Command(name, function, arguments)
