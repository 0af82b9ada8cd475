"""Declare files that hold physical memory with its addresses: ELF cores and LiME.

Sources: "System V Application Binary Interface", chapter 4 (ELF of 32 bits), "ELF-64 Object File
Format" (version 1.5); LiME's documentation, "Memory Acquisition File Format" (doc/ of the project),
which is little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import construct as c  # type: ignore[import-untyped]

ET_CORE = 4
PT_LOAD, PT_NOTE = 1, 4
ALL_ACCESS = 7
"""Flags of a segment: read, write, execute."""
ELF_HEAD_SIZE = 4 << 20
"""Bytes before the memory in an ELF core: room for the notes of 5000 processors.

A stream carries these after its RAM, but `crash` needs notes before the memory.
"""
MAX_SEGMENTS = 0xFFFE
"""Limit for the program headers that an ELF header can count."""
LIMIT_OF_32_BITS = 1 << 32
"""Limit for addresses and file offsets of 32-bit ELF, in bytes."""


class Processor(NamedTuple):
    """Properties of a processor in an ELF header.

    `machine`: its number (`EM_...`); `bits`: of a word, 32 or 64; `little`: whether it is
    little-endian.
    """

    machine: int
    bits: int
    little: bool = True


def elf_header(processor: Processor) -> c.Construct:
    """Return the declaration of an ELF file's header."""
    half, word, address = _numbers(processor)
    marks = bytes([1 + (processor.bits == 64), 1 + (not processor.little), 1])
    return c.Struct(
        "identification" / c.Const(b"\x7fELF" + marks + bytes(9)),
        "type" / half,
        "machine" / half,
        "version" / c.Const(1, word),
        "entry" / c.Const(0, address),
        "program_headers" / address,
        "section_headers" / c.Const(0, address),
        "flags" / c.Const(0, word),
        "header_size" / half,
        "program_header_size" / half,
        "program_header_count" / half,
        "section_header_size" / c.Const(0, half),
        "section_header_count" / c.Const(0, half),
        "section_names" / c.Const(0, half),
    )


def program_header(processor: Processor) -> c.Construct:
    """Return the declaration of a program header.

    `alignment` is 0, by which `crash` distinguishes a core of a whole machine from one of kdump.
    """
    _, word, address = _numbers(processor)
    places = [
        "offset" / address,
        "virtual_address" / address,
        "physical_address" / address,
        "file_size" / address,
        "memory_size" / address,
    ]
    flags = "flags" / word
    fields = [flags, *places] if processor.bits == 64 else [*places, flags]
    return c.Struct("type" / word, *fields, "alignment" / c.Const(0, address))


def _numbers(processor: Processor) -> tuple[c.Construct, c.Construct, c.Construct]:
    """Return the declarations of 16-bit and 32-bit numbers, and of addresses."""
    if processor.little:
        return c.Int16ul, c.Int32ul, c.Int64ul if processor.bits == 64 else c.Int32ul
    return c.Int16ub, c.Int32ub, c.Int64ub if processor.bits == 64 else c.Int32ub


X86_64 = Processor(62, 64)
ElfHeader, ProgramHeader = elf_header(X86_64), program_header(X86_64)
"""ELF headers of most cores: those of little-endian processors of 64 bits."""

LimeHeader = c.Struct(
    "magic" / c.Const(0x4C694D45, c.Int32ul),
    "version" / c.Const(1, c.Int32ul),
    "first_address" / c.Int64ul,
    "last_address" / c.Int64ul,
    "reserved" / c.Const(bytes(8)),
)
"""Header before each range of memory; `last_address` is the last one in the range."""
LIME_HEADER_SIZE: int = LimeHeader.sizeof()


@dataclass(frozen=True)
class Region:
    """A part of a RAM block as the guest sees it.

    Bytes `start` to `start + length` of the block are at the guest-physical `address`.
    """

    start: int
    length: int
    address: int


class Segment(NamedTuple):
    """A part of the guest's memory in an ELF core.

    The `length` bytes at `place` in the file are at the guest-physical `address`.
    """

    place: int
    length: int
    address: int


def elf_head(segments: Sequence[Segment], processor: Processor, notes: bytes = b"") -> bytes:
    """Return the header, program headers and notes for the beginning of an ELF core.

    Each segment's virtual address is its physical one: a debugger then finds it there. If an
    address or a place needs more than 32 bits, the core is a 64-bit one. Raises ValueError if there
    is no room for the notes or the segments.
    """
    reach = max((max(s.place, s.address) + s.length for s in segments), default=0)
    if reach > LIMIT_OF_32_BITS:
        processor = processor._replace(bits=64)
    header, entry = elf_header(processor), program_header(processor)
    count = 1 + len(segments)
    if count > MAX_SEGMENTS:
        raise ValueError(f"{count} segments")
    behind = header.sizeof() + count * entry.sizeof()
    if behind + len(notes) > ELF_HEAD_SIZE:
        raise ValueError(f"{len(notes)} bytes of notes")
    head: bytes = header.build(
        {
            "type": ET_CORE,
            "machine": processor.machine,
            "program_headers": header.sizeof(),
            "header_size": header.sizeof(),
            "program_header_size": entry.sizeof(),
            "program_header_count": count,
        }
    )
    shown = [(PT_NOTE, 0, Segment(behind, len(notes), 0))]
    shown += [(PT_LOAD, ALL_ACCESS, segment) for segment in segments]
    for kind, flags, segment in shown:
        head += entry.build(
            {
                "type": kind,
                "flags": flags,
                "offset": segment.place,
                "virtual_address": segment.address,
                "physical_address": segment.address,
                "file_size": segment.length,
                "memory_size": segment.length if kind == PT_LOAD else 0,
            }
        )
    return head + notes


def lime_header(region: Region) -> bytes:
    """Return the LiME header that precedes the memory of this region."""
    last = region.address + region.length - 1
    data: bytes = LimeHeader.build({"first_address": region.address, "last_address": last})
    return data
