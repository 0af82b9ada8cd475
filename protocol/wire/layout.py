"""Derive numpy's view of a structure from its declaration, to build or read many at once."""

from __future__ import annotations

from typing import Any, cast

import construct as c  # type: ignore[import-untyped]
import numpy as np


def dtype_of(declaration: c.Struct) -> np.dtype[Any]:
    """Return the dtype of a structure of fixed size: its integers and its bytes, by name.

    Fields without a name, such as padding, are left out, but keep their place.
    """
    names: list[str] = []
    formats: list[str] = []
    offsets: list[int] = []
    offset = 0
    for part in declaration.subcons:
        size = part.sizeof()
        if part.name is not None:
            names.append(part.name)
            formats.append(_format(part.subcon, size))
            offsets.append(offset)
        offset += size
    fields = {"names": names, "formats": formats, "offsets": offsets, "itemsize": offset}
    made: np.dtype[Any] = np.dtype(cast(Any, fields))
    return made


def _format(part: c.Construct, size: int) -> str:
    """Return numpy's name of an integer, or of bytes, which are padded with zeros when set."""
    if not isinstance(part, c.FormatField):
        return f"S{size}"
    order, kind = part.fmtstr
    return f"{order}{'u' if kind.isupper() else 'i'}{size}"
