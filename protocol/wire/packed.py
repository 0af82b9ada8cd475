"""Derive the `struct` view of a structure from its declaration, where time counts."""

from __future__ import annotations

import struct

import construct as c  # type: ignore[import-untyped]


def struct_of(declaration: c.Struct) -> struct.Struct:
    """Return the `struct` view of a fixed structure whose integers have the same byte order.

    The structure may have integers, bytes and padding.
    """
    order, text = ">", ""
    for part in declaration.subcons:
        if part.name is None:
            text += f"{part.sizeof()}x"
        elif isinstance(part.subcon, c.FormatField):
            order, letter = part.subcon.fmtstr
            text += letter
        else:
            text += f"{part.sizeof()}s"
    return struct.Struct(order + text)


def names_of(declaration: c.Struct) -> tuple[str, ...]:
    """Return the names of the fields that `struct_of` unpacks, in order."""
    return tuple(part.name for part in declaration.subcons if part.name is not None)


def is_fixed(declaration: c.Struct) -> bool:
    """Return whether a structure has only integers and bytes of fixed size."""
    return all(isinstance(part.subcon, (c.FormatField, c.Bytes)) for part in declaration.subcons)
