"""Declarations of ACPI's NVDIMM Firmware Interface Table, as far as it says where NVDIMMs are.

Source: "ACPI Specification" (version 6.4), chapter 5.2.25.
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

SIGNATURE = b"NFIT"
PERSISTENT_MEMORY = bytes.fromhex("79d3f066f3b47440ac430d3318b78cdb")
"""The GUID of a range of persistent memory."""
MAX_TABLE = 1 << 20
"""Bytes of a table that makes sense."""

Table = c.Struct(
    "signature" / c.Const(SIGNATURE), "length" / c.Int32ul, c.Padding(28), c.Padding(4)
)
Entry = c.Struct("type" / c.Int16ul, "length" / c.Int16ul)
Range = c.Struct(
    "entry" / Entry,
    c.Padding(12),
    "guid" / c.Bytes(16),
    "address" / c.Int64ul,
    "length" / c.Int64ul,
)
"""An entry of type 0."""


def ranges(tables: bytes) -> list[tuple[int, int]]:
    """Return address and length, in bytes, of each NVDIMM of which the tables of a guest tell."""
    found: list[tuple[int, int]] = []
    at = tables.find(SIGNATURE)
    while at >= 0:
        if at + Table.sizeof() <= len(tables):
            table = Table.parse(tables[at:])
            if Table.sizeof() <= table.length <= min(MAX_TABLE, len(tables) - at):
                found += _entries(tables[at + Table.sizeof() : at + table.length])
        at = tables.find(SIGNATURE, at + 1)
    return found


def _entries(data: bytes) -> list[tuple[int, int]]:
    """None, if they do not fill the table."""
    found, at = [], 0
    while at < len(data):
        if at + Entry.sizeof() > len(data):
            return []
        entry = Entry.parse(data[at:])
        if not Entry.sizeof() <= entry.length <= len(data) - at:
            return []
        if entry.type == 0 and entry.length >= Range.sizeof():
            seen = Range.parse(data[at:])
            if seen.guid == PERSISTENT_MEMORY and seen.address + seen.length <= 1 << 64:
                found.append((seen.address, seen.length))
        at += entry.length
    return found
