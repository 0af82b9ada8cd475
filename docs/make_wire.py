"""Write `docs/wire.md` from the declarations in `protocol/wire/`: `python docs/make_wire.py`.

A test compares the two, so that the document says what the code does.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from enum import EnumMeta, IntFlag
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import construct as c  # type: ignore[import-untyped]

MODULES = {
    "marks": "Marks",
    "stream": "The stream",
    "ram": "Pages: the section `ram`",
    "mapped_ram": "Pages at fixed places: mapped-ram",
    "multifd": "Pages on channels: multifd",
    "block": "Disks: the section `block`",
    "dirty_bitmap": "The section `dirty-bitmap`",
    "htab": "The section `spapr/htab`",
    "storage_attributes": "The section `s390-storage_attributes`",
}
"""The modules of `vmferry.protocol.wire` with declarations, and their headings."""

RECORDS = ("plain_record", "zero_record", "xbzrle_record", "compressed_record")
"""Functions of the module `ram` that return the declaration of a record."""

TITLE = """# The wire format

Generated from the declarations in `protocol/wire/` by `python docs/make_wire.py`. All numbers are
unsigned and big-endian. Offsets and sizes are in bytes; an offset is given as far as everything
before it has a fixed size.

A stream is, in this order:

1. `FileHeader`, with the magic QEVM and version 3;
2. the configuration, which names the machine (absent from streams of old machine types):
   `ConfigurationHeader` and its subsections;
3. devices that have to be loaded before RAM, each a FULL section;
4. the iterative sections (`ram`, and those below it in this document), in pieces: `SectionHeader`
   with START, then `SectionContinuation` with PART as often as the source likes, and with END once
   the guest is paused; each is followed by the section's own records;
5. the other devices, each a FULL section: `SectionHeader` and the device's state, which only its
   description explains;
6. EOF, one byte; then `DescriptionHeader` and a JSON text that describes the sections of devices.

Each section ends with `SectionFooter`, except in streams of old machine types. A `Command` may
precede any section.
"""


def document() -> str:
    """Return the text of `docs/wire.md`."""
    return TITLE + "".join(section(name, title) for name, title in MODULES.items())


def section(name: str, title: str) -> str:
    """Return the section about one module."""
    module = import_module(f"vmferry.protocol.wire.{name}")
    parts = [f"\n## {title}\n\n{prose(module)}\n"]
    said = docstrings(module)
    for member, value in own_members(module):
        if isinstance(value, EnumMeta):
            parts.append(heading(member, inspect.getdoc(value)) + marks(value))
        elif isinstance(value, c.Construct):
            parts.append(heading(member, said.get(member)) + table(value))
        elif member in RECORDS:
            page = {"page_size": 4096} if member == "plain_record" else {}
            parts.append(heading(member, prose(value)))
            parts.append(table(value(continued=False, **page)))
    return "".join(parts)


def prose(documented: ModuleType | Callable[..., Any]) -> str:
    """Return the docstring of a module or function, without the words that address its caller."""
    text = inspect.getdoc(documented) or ""
    for words in ("Declare ", "Define ", "Return the declaration of "):
        text = text.removeprefix(words)
    return text[:1].upper() + text[1:]


def own_members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield names and values that the module itself defines, in the order of its lines."""
    for node in ast.parse(inspect.getsource(module)).body:
        names = [getattr(node, "name", "")]
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        for name in names:
            if name and not name.startswith("_"):
                yield name, getattr(module, name)


def docstrings(module: ModuleType) -> dict[str, str]:
    """Return the docstring behind each assignment of a module."""
    body = ast.parse(inspect.getsource(module)).body
    found = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr):
            text = ast.literal_eval(after.value)
            found[ast.unparse(node.targets[0])] = inspect.cleandoc(text)
    return found


def heading(name: str, text: str | None) -> str:
    """Return the heading of a declaration, and what its docstring says."""
    return f"\n### {name}\n\n" + (f"{text}\n\n" if text else "")


def marks(kind: EnumMeta) -> str:
    """Return the table of an enumeration."""
    shown = "{:#x}" if issubclass(kind, IntFlag) else "{}"
    rows = [f"| {member.name} | {shown.format(member.value)} |\n" for member in kind]  # type: ignore[var-annotated]
    return "| name | value |\n| --- | --- |\n" + "".join(rows)


def table(declared: c.Construct) -> str:
    """Return the table of a structure, or the one line of a declaration without fields."""
    if not isinstance(declared, c.Struct):
        return f"{kind_of(declared)}\n"
    rows, offset = [], 0
    fixed = True
    for field in declared.subcons:
        if bare(field) is c.Terminated:
            continue
        name = f"`{field.name}`" if field.name else ""
        rows.append(f"| {offset if fixed else ''} | {name} | {kind_of(field)} |\n")
        try:
            offset += field.sizeof()
        except c.SizeofError:
            fixed = False
    return "| offset | field | what it is |\n| --- | --- | --- |\n" + "".join(rows)


def bare(declared: c.Construct) -> c.Construct:
    """Return the declaration without its name."""
    return declared.subcon if isinstance(declared, c.Renamed) else declared


def kind_of(declared: c.Construct) -> str:
    """Return in words what a declaration matches. Raises ValueError for a kind without words."""
    declared = bare(declared)
    for kind, words in WORDS.items():
        if isinstance(declared, kind):
            return words(declared)
    raise ValueError(f"no words for {declared!r}")


def constant(declared: c.Construct) -> str:
    """Return a constant, and how it is written."""
    if isinstance(declared.value, bytes):
        return f"always the bytes `{declared.value.hex()}`"
    return f"{kind_of(declared.subcon)}, always {int(declared.value):#x}"


WORDS: dict[type, Callable[[Any], str]] = {
    c.FormatField: lambda it: f"number of {8 * it.sizeof()} bits",
    c.Const: constant,
    c.Bytes: lambda it: f"{it.length} bytes",
    c.Padded: lambda it: f"{it.length} bytes without meaning",
    c.Prefixed: lambda it: f"{kind_of(it.lengthfield)}, and as many bytes",
    c.GreedyRange: lambda it: f"until the end, each: {kind_of(it.subcon)}",
    c.Struct: lambda it: "; ".join(f"`{field.name}`: {kind_of(field)}" for field in it.subcons),
}
"""The kinds of declarations, and what a reader of the document gets to know of each."""


if __name__ == "__main__":
    text = document()
    if sys.argv[1:] == ["-"]:
        sys.stdout.write(text)
    else:
        (Path(__file__).parent / "wire.md").write_text(text, encoding="utf-8")
