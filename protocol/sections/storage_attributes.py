"""Read and write the section `s390-storage_attributes`, declared in `wire.storage_attributes`."""

from __future__ import annotations

from ..errors import StreamError
from ..section_events import StorageAttributes
from ..wire.cursor import Cursor
from ..wire.marks import SectionType
from ..wire.storage_attributes import (
    PAGE_SIZE,
    SECTION_NAME,
    AttributeFlag,
    Count,
    RecordHeader,
)

_MAX_VALUES = 1 << 20
"""Limit for one record, in bytes; QEMU sends at most half of that."""


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
