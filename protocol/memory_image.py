"""Declarations of files that hold physical memory with its addresses: ELF cores, LiME.

Sources: "ELF-64 Object File Format" (version 1.5); LiME's documentation, "Memory Acquisition File
Format" (doc/ of the project). Both are little-endian here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import construct as c  # type: ignore[import-untyped]

ET_CORE = 4
PT_LOAD, PT_NOTE = 1, 4
EM_X86_64, EM_AARCH64 = 62, 183
ALL_ACCESS = 7
"""Of a segment: read, write, execute."""
ELF_HEAD_SIZE = 4 << 20
"""Bytes before the memory in an ELF core: room for notes of 5000 processors. A stream brings these
behind its RAM, but `crash` wants notes before it."""

ElfHeader = c.Struct(
    "identification" / c.Const(b"\x7fELF\x02\x01\x01" + bytes(9)),
    "type" / c.Int16ul,
    "machine" / c.Int16ul,
    "version" / c.Const(1, c.Int32ul),
    "entry" / c.Const(0, c.Int64ul),
    "program_headers" / c.Int64ul,
    "section_headers" / c.Const(0, c.Int64ul),
    "flags" / c.Const(0, c.Int32ul),
    "header_size" / c.Int16ul,
    "program_header_size" / c.Int16ul,
    "program_header_count" / c.Int16ul,
    "section_header_size" / c.Const(0, c.Int16ul),
    "section_header_count" / c.Const(0, c.Int16ul),
    "section_names" / c.Const(0, c.Int16ul),
)

ProgramHeader = c.Struct(
    "type" / c.Int32ul,
    "flags" / c.Int32ul,
    "offset" / c.Int64ul,
    "virtual_address" / c.Int64ul,
    "physical_address" / c.Int64ul,
    "file_size" / c.Int64ul,
    "memory_size" / c.Int64ul,
    "alignment" / c.Const(0, c.Int64ul),
)
"""`alignment`: none; by that `crash` tells a core of a whole machine from one that kdump made."""

LimeHeader = c.Struct(
    "magic" / c.Const(0x4C694D45, c.Int32ul),
    "version" / c.Const(1, c.Int32ul),
    "first_address" / c.Int64ul,
    "last_address" / c.Int64ul,
    "reserved" / c.Const(bytes(8)),
)
"""Before each range of memory; `last_address` still belongs to it."""
LIME_HEADER_SIZE: int = LimeHeader.sizeof()


@dataclass(frozen=True)
class Region:
    """A part of a RAM block as the guest sees it: bytes `start` to `start + length` of the block
    stand at the guest-physical `address`."""

    start: int
    length: int
    address: int


def elf_head(regions: Sequence[Region], machine: int, notes: bytes = b"") -> bytes:
    """What an ELF core begins with; at ELF_HEAD_SIZE memory follows in one piece, region by region.

    Each region's virtual address is its physical one: a debugger then finds it there. Raises
    ValueError where there is no room for the notes.
    """
    count = 1 + len(regions)
    behind = ElfHeader.sizeof() + count * ProgramHeader.sizeof()
    if behind + len(notes) > ELF_HEAD_SIZE:
        raise ValueError(f"{len(notes)} bytes of notes")
    head: bytes = ElfHeader.build(
        {
            "type": ET_CORE,
            "machine": machine,
            "program_headers": ElfHeader.sizeof(),
            "header_size": ElfHeader.sizeof(),
            "program_header_size": ProgramHeader.sizeof(),
            "program_header_count": count,
        }
    )
    head += _program_header(PT_NOTE, behind, len(notes))
    for region in regions:
        place = ELF_HEAD_SIZE + region.start
        head += _program_header(PT_LOAD, place, region.length, region.address)
    return head + notes


def _program_header(kind: int, offset: int, size: int, address: int = 0) -> bytes:
    header: bytes = ProgramHeader.build(
        {
            "type": kind,
            "flags": ALL_ACCESS if kind == PT_LOAD else 0,
            "offset": offset,
            "virtual_address": address,
            "physical_address": address,
            "file_size": size,
            "memory_size": size if kind == PT_LOAD else 0,
        }
    )
    return header


def lime_header(region: Region) -> bytes:
    """What stands before the memory of this region."""
    last = region.address + region.length - 1
    data: bytes = LimeHeader.build({"first_address": region.address, "last_address": last})
    return data
