"""Declare the iterative section `spapr/htab`: the hashed page table of a pseries guest.

Each piece begins with a be32: the table's size as a power of two in the first piece, 0xffffffff if
there is no table, 0 if chunks follow, up to an empty one. Source: captured streams.
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

SECTION_NAME = "spapr/htab"
SECTION_VERSION = 1
ENTRY_SIZE = 16
MAX_SHIFT = 46

Header = c.Int32sb
Chunk = c.Struct("first" / c.Int32ub, "valid" / c.Int16ub, "invalid" / c.Int16ub)
"""Header for entries from `first` on: `valid` ones, which follow, then `invalid` empty ones."""
