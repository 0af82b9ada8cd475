"""The iterative section `block`: disks that move with the guest (QEMU up to 9.0).

Records of be64, `sector << 9 | flags`; a block of a disk is always 1 MiB on the wire, though the
disk may end within it. Source: captured streams; QEMU's capability `zero-blocks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import TypeAlias

import construct as c  # type: ignore[import-untyped]

from ..errors import StreamError
from ..wire.cursor import Cursor, decode_name
from ..wire.marks import SectionType
from ..wire.stream import Str8

SECTION_NAME = "block"
SECTION_VERSION = 1
BLOCK_SIZE = 1 << 20
SECTOR_BITS = 9


class BlockFlag(IntFlag):
    """The low bits of a record's be64."""

    DEVICE_BLOCK = 0x01
    EOS = 0x02
    PROGRESS = 0x04
    ZERO_BLOCK = 0x08


RecordHeader = c.Int64ub


@dataclass(frozen=True)
class DiskBlock:
    """A block of a disk: `device` by name, from sector `sector` (of 512 bytes) on.

    `data`: 1 MiB; None: all zero.
    """

    offset: int
    device: str
    sector: int
    data: bytes | None = field(repr=False)


@dataclass(frozen=True)
class DiskProgress:
    """How far the source is with the disks."""

    offset: int
    percent: int


@dataclass(frozen=True)
class EndOfDisks:
    """The EOS record: end of this piece of `block`."""

    offset: int


DiskEvent: TypeAlias = DiskBlock | DiskProgress | EndOfDisks

_DATA, _ZEROS = BlockFlag.DEVICE_BLOCK, BlockFlag.DEVICE_BLOCK | BlockFlag.ZERO_BLOCK


class BlockReader:
    """The state of one `block` section."""

    def __init__(self) -> None:
        self.at_end = False
        self._block: tuple[int, str, int] | None = None
        self._data = bytearray()

    def begin(self, kind: SectionType) -> None:  # noqa: ARG002
        """See SectionReader."""
        self.at_end = False

    def read(self, cursor: Cursor) -> list[DiskEvent]:
        """See SectionReader."""
        if self._block is not None:
            block = DiskBlock(*self._block, cursor.gather(self._data, BLOCK_SIZE))
            self._block = None
            return [block]
        offset, value = cursor.offset, cursor.take(RecordHeader)
        number, flags = value >> SECTOR_BITS, value & ((1 << SECTOR_BITS) - 1)
        if value == BlockFlag.EOS:
            self.at_end = True
            return [EndOfDisks(offset)]
        if flags == BlockFlag.PROGRESS:
            return [DiskProgress(offset, number)]
        if flags not in (_DATA, _ZEROS):
            raise StreamError(f"{value:#018x} is no record", offset=offset, section=SECTION_NAME)
        device = _device_name(cursor.take(Str8), offset)
        if flags == _ZEROS:
            return [DiskBlock(offset, device, number, None)]
        self._block = (offset, device, number)
        return []


def _device_name(raw: bytes, offset: int) -> str:
    # A disk that QEMU knows by its node alone has no name here.
    name = decode_name(raw) if raw else ""
    if name is None:
        raise StreamError(f"a disk named {raw!r}", offset=offset, section=SECTION_NAME)
    return name


def write_block(event: DiskBlock) -> bytes:
    """The bytes of a record."""
    flags = _ZEROS if event.data is None else _DATA
    header = RecordHeader.build(event.sector << SECTOR_BITS | flags)
    return bytes(header + Str8.build(event.device.encode()) + (event.data or b""))


def write_progress(event: DiskProgress) -> bytes:
    """The bytes of a record."""
    return bytes(RecordHeader.build(event.percent << SECTOR_BITS | BlockFlag.PROGRESS))


def write_end(_: EndOfDisks) -> bytes:
    """The bytes of a record."""
    return bytes(RecordHeader.build(int(BlockFlag.EOS)))
