"""Parses the values of QEMU's options, which are KEY=VALUE lists or JSON, and makes them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...machines.qemu_command import option_value


def parse(value: str, first: str = "") -> dict[str, str]:
    """Return the properties in an option's value, nested ones under names with dots.

    `first`: the key of a first part without one. A part without a value is switched on. Raises
    ValueError for JSON that is none.
    """
    if value.startswith("{"):
        return dict(_flat(json.loads(value)))
    found: dict[str, str] = {}
    for number, part in enumerate(_split(value)):
        key, equals, rest = part.partition("=")
        if equals:
            found[key] = rest
        elif number == 0 and first:
            found[first] = part
        elif part:
            found[part] = "on"
    return found


def _split(value: str) -> list[str]:
    """Return the parts between single commas; two commas are one of a part."""
    parts = value.replace(",,", "\0").split(",")
    return [part.replace("\0", ",") for part in parts]


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = {str(index): each for index, each in enumerate(value)}.items()
    else:
        text = {True: "on", False: "off", None: ""}.get(value) if _is_word(value) else None
        return [(path, str(value) if text is None else text)]
    return [pair for key, each in items for pair in _flat(each, f"{path}.{key}" if path else key)]


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def compose(properties: Mapping[str, str]) -> str:
    """Return the value of an option with these properties."""
    return ",".join(f"{key}={option_value(text)}" for key, text in properties.items())
