"""Read and write the section `s390-storage_attributes`: the use of each page of an s390 guest.

Records of be64, `address | flag`; MORE is followed by a be64 and that many bytes, one per page of
4096 bytes from that address on. Source: captured streams, and QEMU's hw/s390x/s390-stattrib.c.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag

import construct as c  # type: ignore[import-untyped]

from ..errors import StreamError
from ..wire.cursor import Cursor
from ..wire.marks import SectionType

SECTION_NAME = "s390-storage_attributes"
SECTION_VERSION = 0
PAGE_SIZE = 4096

_MAX_VALUES = 1 << 20
"""Limit for one record, in bytes; QEMU sends at most half of that."""


class AttributeFlag(IntFlag):
    """The low bits of a record's be64."""

    EOS = 0x01
    MORE = 0x02
    ERROR = 0x04
    DONE = 0x08


RecordHeader = c.Int64ub
Count = c.Int64ub
"""Number of bytes that follow a MORE record."""


@dataclass(frozen=True)
class StorageAttributes:
    """One record of the section.

    MORE: `values`, one byte per page from `address` on; EOS: end of this piece.
    """

    offset: int
    flag: AttributeFlag
    address: int = 0
    values: bytes = field(default=b"", repr=False)


class StorageAttributesReader:
    """Reader of one `s390-storage_attributes` section, over all its pieces."""

    def __init__(self) -> None:
        self.at_end = False
        self._more: tuple[int, AttributeFlag, int] | None = None
        self._size = 0
        self._values = bytearray()

    def begin(self, kind: SectionType) -> None:  # noqa: ARG002
        """Begin a piece of the section."""
        self.at_end = False

    def read(self, cursor: Cursor) -> list[StorageAttributes]:
        """Return the next record; nothing while its values are incomplete. Raises StreamError."""
        if self._more is not None:
            values = cursor.gather(self._values, self._size)
            record = StorageAttributes(*self._more, values)
            self._more = None
            return [record]
        offset, value = cursor.offset, cursor.take(RecordHeader)
        address, flag = value & -PAGE_SIZE, value & (PAGE_SIZE - 1)
        if value in (AttributeFlag.EOS, AttributeFlag.DONE):
            self.at_end = flag == AttributeFlag.EOS
            return [StorageAttributes(offset, AttributeFlag(flag))]
        if value == AttributeFlag.ERROR:
            raise _error("the source says that they are incomplete", offset)
        if flag != AttributeFlag.MORE:
            raise _error(f"{value:#018x} is no record", offset)
        count = cursor.take(Count)
        if count > _MAX_VALUES:
            raise _error(f"a record of {count} bytes", offset)
        self._more, self._size = (offset, AttributeFlag.MORE, address), count
        return []


def _error(message: str, offset: int) -> StreamError:
    return StreamError(message, offset=offset, section=SECTION_NAME)


def write_record(event: StorageAttributes) -> bytes:
    """Return the bytes of a record."""
    header = RecordHeader.build(event.address | event.flag)
    if event.flag != AttributeFlag.MORE:
        return bytes(header)
    return bytes(header + Count.build(len(event.values)) + event.values)
