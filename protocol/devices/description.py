"""Read the JSON description of a stream, which is not trusted.

For a device, a structure in it or a subsection it lists `fields` (each with `name`, `type` and
`size` in bytes; an array as one entry with `array_len`, or as one for each element with `index`)
and `subsections` (each with `vmsd_name` and `version`). Source: QEMU's documentation,
docs/devel/migration/main.rst, and the descriptions of captured streams.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import VmferryError
from ..wire.marks import CAPABILITIES, PAGE_BITS

MAX_NUMBER = 1 << 32
"""Limit that no size, length, version or instance id reaches."""

MAX_DESCRIPTION = 64 << 20
"""Limit for a description, in bytes; QEMU's have up to some MiB."""

CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Bytes that no JSON contains."""

MAX_DEPTH = 32
"""Limit for the depth of nested structures, or of nested subsections."""

_SUBSECTION_HEADER_SIZE = 1 + 1 + 4
"""Bytes of a `stream.SubsectionHeader` besides its name."""

Structure: TypeAlias = Mapping[str, Any]
"""The JSON object of a device, a structure or a subsection."""
Entry: TypeAlias = Mapping[str, Any]
"""The JSON object of one of the `fields` of a structure."""


class DescriptionError(VmferryError, ValueError):
    """An invalid description; the message is one line."""


def devices_of(description: Mapping[str, Any]) -> list[tuple[tuple[str, int], Structure]]:
    """Return the devices, each after its name and instance id. Raises DescriptionError."""
    listed = _objects(description, "devices")
    return [((text(d, "name"), number(d, "instance_id")), d) for d in listed]


def fields_of(structure: Structure) -> list[Entry]:
    """Return the fields of a structure, in the order on the wire. Raises DescriptionError."""
    return _objects(structure, "fields")


def subsections_of(structure: Structure) -> list[Structure]:
    """Return the subsections of a structure, which follow its fields. Raises DescriptionError."""
    return _objects(structure, "subsections")


def _objects(structure: Structure, key: str) -> list[Mapping[str, Any]]:
    found = structure.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DescriptionError(f"{key} are no list of objects")
    return found


def extent(entry: Entry) -> tuple[int, int]:
    """Return the number of elements of an entry, and the bytes of each. Raises DescriptionError."""
    return number(entry, "array_len", 1), number(entry, "size")


def subsection_ids(subsection: Structure) -> tuple[bytes, int]:
    """Return the name, as on the wire, and version of a subsection. Raises DescriptionError."""
    name = text(subsection, "vmsd_name").encode()
    if len(name) > 255:
        raise DescriptionError("a subsection's name is too long")
    return name, number(subsection, "version")


def number(entry: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return the whole number, not negative, under `key`. Raises DescriptionError."""
    value = entry.get(key, default)
    # JSON's true and false are not numbers, though Python's are.
    if type(value) is not int or not 0 <= value < MAX_NUMBER:
        raise DescriptionError(f"{key} is missing, or no number that makes sense")
    return value


def text(entry: Mapping[str, Any], key: str) -> str:
    """Return the name under `key`. Raises DescriptionError."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.isprintable() or len(value) > 255:
        raise DescriptionError(f"{key} is missing, or no name")
    return value


def with_capabilities(description: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the description changed for a configuration with the capabilities `names`.

    Descriptions without a configuration, which are those of older streams, stay unchanged.
    """
    structure = description.get("configuration")
    if not isinstance(structure, dict):
        return description
    kept = [
        subsection
        for subsection in subsections_of(structure)
        if subsection.get("vmsd_name") != CAPABILITIES.decode()
    ]
    if names:
        # The capabilities follow the page size and precede the UUID.
        first = kept[:1] if kept and kept[0].get("vmsd_name") == PAGE_BITS.decode() else []
        kept = [*first, _capabilities(names), *kept[len(first) :]]
    changed = {key: value for key, value in structure.items() if key != "subsections"}
    return {**description, "configuration": {**changed, **({"subsections": kept} if kept else {})}}


def _capabilities(names: Sequence[str]) -> Structure:
    fields = [{"name": "caps_count", "type": "uint32", "size": 4}]
    for index, name in enumerate(names):
        entry = {"name": "capabilities", "type": "capability", "size": 1 + len(name)}
        fields.append({**entry, "index": index} if len(names) > 1 else entry)
    return {"vmsd_name": CAPABILITIES.decode(), "version": 1, "fields": fields}


@dataclass(frozen=True)
class Length:
    """The bytes of a payload by the description.

    Not `exact`: it has arrays described by their first element, and the other elements may differ.
    """

    size: int
    exact: bool


@dataclass(frozen=True)
class Described:
    """A device as the description lists it; `version` is None if that has none."""

    name: str
    instance_id: int
    version: int | None
    length: Length


def described(description: Mapping[str, Any]) -> list[Described]:
    """Return the devices in the order of their sections. Raises DescriptionError."""
    found = []
    for (name, instance_id), device in devices_of(description):
        version = number(device, "version") if "version" in device else None
        found.append(Described(name, instance_id, version, Length(*_size_of(device))))
    return found


def described_lengths(description: Mapping[str, Any]) -> dict[tuple[str, int], Length]:
    """Return payload lengths by name and instance id. Raises DescriptionError."""
    return {(one.name, one.instance_id): one.length for one in described(description)}


def _size_of(structure: Structure, depth: int = 0) -> tuple[int, bool]:
    """Return the bytes of a structure's fields and subsections, and whether they are exact.

    A field's size includes the structures nested in it.
    """
    if depth > MAX_DEPTH:
        raise DescriptionError(f"more than {MAX_DEPTH} subsections in each other")
    total, exact = 0, True
    for entry in fields_of(structure):
        count, size = extent(entry)
        total += count * size
        # QEMU measures a structure's size with all that is in it: only that of an array may be
        # wrong.
        exact = exact and "array_len" not in entry
    for entry in subsections_of(structure):
        size, exact_inside = _size_of(entry, depth + 1)
        total += _SUBSECTION_HEADER_SIZE + len(subsection_ids(entry)[0]) + size
        exact = exact and exact_inside
    return total, exact
