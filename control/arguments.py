"""Declare arguments of commands with name and type, and check them with QEMU's error messages.

A type is a function: it takes the argument's path (`capabilities[0].state`) and what a client sent,
and returns the value. It raises QmpError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import QmpError

Type = Callable[[str, Any], Any]

REQUIRED = object()
"""The default of an argument that must be given."""


@dataclass(frozen=True)
class Argument:
    """One declared argument; `default` applies if a client leaves it out."""

    name: str
    type: Type
    default: Any = REQUIRED


def check_arguments(
    declared: Sequence[Argument], given: dict[str, Any], within: str = ""
) -> dict[str, Any]:
    """Return every declared argument by name, with `_` for `-`. Raises QmpError."""
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
    """Return `value` if it is text without null characters and surrogates. Raises QmpError."""
    if not isinstance(value, str):
        raise _wrong(name, "string")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise QmpError(f"Parameter '{name}' holds a character that is none")
    return value


def boolean(name: str, value: Any) -> bool:
    """Return `value` if it is true or false. Raises QmpError."""
    if not isinstance(value, bool):
        raise _wrong(name, "boolean")
    return value


def integer(name: str, value: Any) -> int:
    """Return `value` if it is a signed integer of 64 bits. Raises QmpError."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, "integer")
    if not -(1 << 63) <= value < 1 << 63:
        raise QmpError(f"Parameter '{name}' expects int64")
    return value


def number(name: str, value: Any) -> float:
    """Return `value`, a number with or without a fraction, as a float. Raises QmpError."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _wrong(name, "number")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def unsigned(bits: int, words: str) -> Type:
    """Return a type for unsigned integers of `bits` bits, which QEMU calls `words`.

    With 64 bits, negative values wrap around.
    """

    def check(name: str, value: Any) -> int:
        least = -(1 << 63) if bits == 64 else 0
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or not least <= value < 1 << bits:
            raise QmpError(f"Parameter '{name}' expects {words}")
        return int(value) % (1 << bits)

    return check


def choice(names: Sequence[str]) -> Type:
    """Return a type for one of these words."""

    def check(name: str, value: Any) -> str:
        if string(name, value) not in names:
            raise QmpError(f"Parameter '{name}' does not accept value '{value}'")
        return str(value)

    return check


def array(element: Type) -> Type:
    """Return a type for a list of elements of one type."""

    def check(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(name, "array")
        return [element(f"{name}[{index}]", item) for index, item in enumerate(value)]

    return check


def structure(*declared: Argument) -> Type:
    """Return a type for an object with these members."""

    def check(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(name, "object")
        return check_arguments(declared, value, f"{name}.")

    return check
