"""Derive a `struct` format from a construct declaration of fixed size, where time counts."""

from __future__ import annotations

import struct

import construct as c  # type: ignore[import-untyped]


def struct_of(declared: c.Struct) -> tuple[tuple[str, ...], struct.Struct]:
    """Return the names of the declared fields, and a big-endian Struct that unpacks their values.

    The declaration may have integers, bytes and padding.
    """
    names, codes = [], [">"]
    for field in declared.subcons:
        if field.name is None:
            codes.append(f"{field.sizeof()}x")
            continue
        names.append(field.name)
        kind = field.subcon
        codes.append(kind.fmtstr[-1] if isinstance(kind, c.FormatField) else f"{kind.sizeof()}s")
    return tuple(names), struct.Struct("".join(codes))
