"""Formats tables, and values such as those in JSON, as readable lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

INDENT = "  "


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines with aligned columns; cells are never truncated or parsed as markup."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield INDENT.join(cells).rstrip()


def readable(value: object) -> Iterator[str]:
    """Yield a value as lines: an object has a line per member, and a list of flat objects is a
    table.

    Other members are indented below their name. Text alone keeps its lines; empty values yield
    none.
    """
    if isinstance(value, dict):
        yield from _members(value)
    elif isinstance(value, list):
        yield from _items(value)
    elif isinstance(value, str):
        yield from map(_text, value.splitlines())
    else:
        yield _text(value)


def _members(value: Mapping[str, object]) -> Iterator[str]:
    names = {name: _text(name) for name in value}
    width = max((len(names[name]) for name in value if _flat(value[name])), default=0)
    for name, member in value.items():
        if _flat(member):
            yield f"{names[name]:<{width}}{INDENT}{_text(member)}".rstrip()
        else:
            yield names[name]
            yield from (INDENT + line for line in readable(member))


def _items(value: Sequence[Any]) -> Iterator[str]:
    if value and all(isinstance(item, dict) and all(map(_flat, item.values())) for item in value):
        head = list(dict.fromkeys(name for item in value for name in item))
        rows = [[_text(item.get(name, "")) for name in head] for item in value]
        yield from table([[_text(name) for name in head], *rows])
        return
    for item in value:
        mark = "" if _flat(item) else "- "
        for line in readable(item) if mark else (_text(item),):
            yield mark + line
            mark = mark and INDENT


def _flat(value: object) -> bool:
    """Return whether the value fits on one line."""
    return not isinstance(value, (dict, list)) or not value


def _text(value: object) -> str:
    """Return text, or JSON of any other value, with unprintable characters escaped."""
    text = value if isinstance(value, str) else json.dumps(value)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
