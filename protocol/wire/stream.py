"""Declare the structures of a migration stream, except the records of `ram`.

Source: QEMU's documentation, docs/devel/migration/main.rst ("Stream structure").
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

from .marks import CAPABILITIES, PAGE_BITS, UUID, SectionType

DeclarationError = c.ConstructError
"""The exception that a declaration raises for bytes that do not match it."""

Str8 = c.Prefixed(c.Int8ub, c.GreedyBytes)
"""A length byte, then that many bytes."""

FileHeader = c.Struct("magic" / c.Int32ub, "version" / c.Int32ub)

ConfigurationHeader = c.Struct(
    "type" / c.Const(SectionType.CONFIGURATION, c.Int8ub),
    "machine" / c.Prefixed(c.Int32ub, c.GreedyBytes),
)
SubsectionHeader = c.Struct(
    "type" / c.Const(SectionType.SUBSECTION, c.Int8ub),
    "name" / Str8,
    "version" / c.Int32ub,
)

CONFIGURATION_SUBSECTIONS: dict[bytes, c.Construct] = {
    PAGE_BITS: c.Int32ub,
    CAPABILITIES: c.PrefixedArray(c.Int32ub, Str8),
    UUID: c.Bytes(16),
}
"""Body of each subsection after its header; on the wire in this order."""

SectionHeader = c.Struct(
    "type" / c.Int8ub,
    "section_id" / c.Int32ub,
    "name" / Str8,
    "instance_id" / c.Int32ub,
    "version" / c.Int32ub,
)
"""Header of SECTION_START and SECTION_FULL."""

SectionContinuation = c.Struct("type" / c.Int8ub, "section_id" / c.Int32ub)
"""Header of SECTION_PART and SECTION_END."""

SectionFooter = c.Struct("type" / c.Const(SectionType.FOOTER, c.Int8ub), "section_id" / c.Int32ub)

FOOTER_SIZE: int = SectionFooter.sizeof()

Command = c.Struct(
    "type" / c.Const(SectionType.COMMAND, c.Int8ub),
    "command" / c.Int16ub,
    "data" / c.Prefixed(c.Int16ub, c.GreedyBytes),
)

PostcopyAdvice = c.Struct(
    "block_page_sizes" / c.Int64ub, "page_size" / c.Int64ub, "end" / c.Terminated
)
"""Data of POSTCOPY_ADVISE if RAM may be postcopied; both fields in bytes.

`block_page_sizes`: sum of the distinct page sizes of the host memory behind the source's RAM
blocks; `page_size`: the guest's page size.
"""

RamDiscard = c.Struct(
    "version" / c.Const(0, c.Int8ub),
    "block" / Str8,
    c.Const(b"\0"),
    "ranges" / c.GreedyRange(c.Struct("start" / c.Int64ub, "length" / c.Int64ub)),
    "end" / c.Terminated,
)
"""Data of POSTCOPY_RAM_DISCARD: ranges that changed after they were sent, in bytes."""

PackageLength = c.Struct("length" / c.Int32ub, "end" / c.Terminated)
"""Data of PACKAGED: how many bytes of sections and commands follow."""

EndOfStream = c.Const(SectionType.EOF, c.Int8ub)

DescriptionHeader = c.Struct(
    "type" / c.Const(SectionType.VMDESCRIPTION, c.Int8ub), "length" / c.Int32ub
)
"""Header of the description; `length` bytes of JSON follow."""


def section_part(section_id: int) -> bytes:
    """Return the header of a SECTION_PART."""
    data: bytes = SectionContinuation.build({"type": SectionType.PART, "section_id": section_id})
    return data


def section_footer(section_id: int) -> bytes:
    """Return the SECTION_FOOTER of the section with this id."""
    data: bytes = SectionFooter.build({"section_id": section_id})
    return data
