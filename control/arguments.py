"""Arguments of commands: declared once with name and type, checked here, with QEMU's own words.

A type is a function: it takes the argument's path (`capabilities[0].state`) and what a client sent,
and returns the value. Raises QmpError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import QmpError

Type = Callable[[str, Any], Any]

REQUIRED = object()
"""The default of an argument that has none."""


@dataclass(frozen=True)
class Argument:
    """One argument; `default` where a client may leave it out."""

    name: str
    type: Type
    default: Any = REQUIRED


def check_arguments(
    declared: Sequence[Argument], given: dict[str, Any], within: str = ""
) -> dict[str, Any]:
    """Every declared argument by its name, with `_` for `-`. Raises QmpError."""
    values = {}
    for argument in declared:
        value = argument.default
        if argument.name in given:
            value = argument.type(within + argument.name, given[argument.name])
        elif value is REQUIRED:
            raise QmpError(f"Parameter '{within}{argument.name}' is missing")
        values[argument.name.replace("-", "_")] = value
    for name in given.keys() - {argument.name for argument in declared}:
        raise QmpError(f"Parameter '{within}{name}' is unexpected")
    return values


def _wrong(name: str, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{name}', expected: {expected}")


def string(name: str, value: Any) -> str:
    """Text that the system can take."""
    if not isinstance(value, str):
        raise _wrong(name, "string")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise QmpError(f"Parameter '{name}' holds a character that is none")
    return value


def boolean(name: str, value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise _wrong(name, "boolean")
    return value


def integer(name: str, value: Any) -> int:
    """64 bits, signed."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, "integer")
    if not -(1 << 63) <= value < 1 << 63:
        raise QmpError(f"Parameter '{name}' expects int64")
    return value


def number(name: str, value: Any) -> float:
    """With a fraction or without."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _wrong(name, "number")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def unsigned(bits: int, words: str) -> Type:
    """An integer of so many bits, which QEMU calls `words`; of 64, negative ones wrap around."""

    def check(name: str, value: Any) -> int:
        least = -(1 << 63) if bits == 64 else 0
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or not least <= value < 1 << bits:
            raise QmpError(f"Parameter '{name}' expects {words}")
        return int(value) % (1 << bits)

    return check


def choice(names: Sequence[str]) -> Type:
    """One of these words."""

    def check(name: str, value: Any) -> str:
        if string(name, value) not in names:
            raise QmpError(f"Parameter '{name}' does not accept value '{value}'")
        return str(value)

    return check


def array(element: Type) -> Type:
    """A list of such."""

    def check(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(name, "array")
        return [element(f"{name}[{index}]", item) for index, item in enumerate(value)]

    return check


def structure(*declared: Argument) -> Type:
    """An object with such members."""

    def check(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(name, "object")
        return check_arguments(declared, value, f"{name}.")

    return check
