"""Declare the events of the iterative sections other than `ram`; `events` has all the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from .wire.dirty_bitmap import BitmapFlag
from .wire.storage_attributes import AttributeFlag


@dataclass(frozen=True)
class DiskBlock:
    """One block of the disk named `device`, from sector `sector` (of 512 bytes) on.

    `data`: 1 MiB, or None if it is all zero.
    """

    offset: int
    device: str
    sector: int
    data: bytes | None = field(repr=False)


@dataclass(frozen=True)
class DiskProgress:
    """The share of the disks that the source has sent, in percent."""

    offset: int
    percent: int


@dataclass(frozen=True)
class EndOfDisks:
    """The EOS record, which ends a piece of the `block` section."""

    offset: int


DiskEvent: TypeAlias = DiskBlock | DiskProgress | EndOfDisks


@dataclass(frozen=True)
class BitmapStart:
    """The start of a bitmap with `granularity` bytes per bit; `flags`: 1 enabled, 2 persistent."""

    granularity: int
    flags: int


@dataclass(frozen=True)
class BitmapBits:
    """A part of a bitmap, for sectors of 512 bytes; `bits`: little-endian, or None if all zero."""

    first_sector: int
    sectors: int
    bits: bytes | None = field(repr=False)


@dataclass(frozen=True)
class BitmapChunk:
    """One chunk of the section.

    `node`, `bitmap`: the names in force; `flags` says which are on the wire. `body`: None if the
    chunk has only flags. `flags_size`: bytes of the flags.
    """

    offset: int
    flags: BitmapFlag
    node: str = ""
    bitmap: str = ""
    body: BitmapStart | BitmapBits | None = None
    flags_size: int = 1


@dataclass(frozen=True)
class HtabHeader:
    """The beginning of a piece.

    `shift`: the table has 2**shift bytes; -1: there is no table; 0: chunks follow.
    """

    offset: int
    shift: int


@dataclass(frozen=True)
class HtabChunk:
    """Entries (16 bytes each) from number `first` on, with `invalid` empty ones after them.

    A chunk with neither ends this piece.
    """

    offset: int
    first: int
    invalid: int
    entries: bytes = field(repr=False)


HtabEvent: TypeAlias = HtabHeader | HtabChunk


@dataclass(frozen=True)
class StorageAttributes:
    """One record of the section.

    MORE: `values`, one byte per page from `address` on; EOS: end of this piece.
    """

    offset: int
    flag: AttributeFlag
    address: int = 0
    values: bytes = field(default=b"", repr=False)
