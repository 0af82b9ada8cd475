"""Compares how two descriptions lay out the state of a device.

A destination reads the fields that its own device has. Where they have another number of bytes than
those that the source wrote, the section does not end where its footer is. Fields of types that may
have any number of bytes are left out: it depends on what the guest does.
"""

from __future__ import annotations

from collections import Counter

from ...protocol.devices.description import (
    MAX_DEPTH,
    DescriptionError,
    Entry,
    Structure,
    extent,
    fields_of,
    subsections_of,
    text,
)
from ...protocol.devices.fields import base_type

_FIXED = frozenset(
    (
        *("bool", "timer", "unused_buffer", "pci config", "pci irq state", "msix state"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
)
"""The types whose bytes depend on the device and its options alone."""


def differing_field(a: Structure, b: Structure) -> str | None:
    """Return the name of the first field that has other numbers of bytes at the sides, or None.

    Subsections are compared where both sides have them. Raises DescriptionError.
    """
    return _differing(a, b, 0)


def _differing(a: Structure, b: Structure, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        raise DescriptionError(f"more than {MAX_DEPTH} structures in each other")
    one, other = _sizes(a), _sizes(b)
    # A newer QEMU may describe as fields what an older one describes as bytes.
    if one.total() != other.total() and _bytes(a) != _bytes(b):
        names = [name for name in {**one, **other} if one[name] != other[name]]
        return names[0]
    theirs = {text(found, "vmsd_name"): found for found in subsections_of(b)}
    for found in subsections_of(a):
        name = text(found, "vmsd_name")
        inner = _differing(found, theirs[name], depth + 1) if name in theirs else None
        if inner is not None:
            return f"{name}/{inner}"
    return None


def _sizes(structure: Structure) -> Counter[str]:
    """Return the bytes of the fields with each name, in all elements together."""
    sizes: Counter[str] = Counter()
    for entry in fields_of(structure):
        count, _ = extent(entry)
        sizes[text(entry, "name")] += count * _size(entry, 0)
    return sizes


def _bytes(structure: Structure) -> int:
    """Return the bytes of all fields, whatever their types."""
    return sum(count * size for count, size in map(extent, fields_of(structure)))


def _size(entry: Entry, depth: int) -> int:
    """Return the bytes of one element that do not depend on what the guest does."""
    if depth > MAX_DEPTH:
        raise DescriptionError(f"more than {MAX_DEPTH} structures in each other")
    kind = base_type(text(entry, "type"))
    _, size = extent(entry)
    if kind in _FIXED:
        return size
    structure = entry if kind in ("vstruct", "tmp") else entry.get("struct")
    if not isinstance(structure, dict):
        return 0
    return sum(extent(inner)[0] * _size(inner, depth + 1) for inner in fields_of(structure))
