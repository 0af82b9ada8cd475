"""Read the places of NVDIMMs from ACPI's NVDIMM Firmware Interface Table.

Source: "ACPI Specification" (version 6.4), chapter 5.2.25.
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

SIGNATURE = b"NFIT"
PERSISTENT_MEMORY = bytes.fromhex("79d3f066f3b47440ac430d3318b78cdb")
"""The GUID of a range of persistent memory."""
MAX_TABLE = 1 << 20
"""Limit for the length of a table, in bytes."""

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
"""An entry of type 0: one range of system physical addresses."""


def ranges(tables: bytes) -> list[tuple[int, int]]:
    """Return address and length, in bytes, of each NVDIMM in a guest's ACPI tables."""
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
    """Return the NVDIMMs in the entries of a table, or none if the entries do not fill it."""
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
