"""Declare the section `s390-storage_attributes`: the use of each page of an s390 guest.

Records of be64, `address | flag`; MORE is followed by a be64 and that many bytes, one per page of
4096 bytes from that address on. Source: captured streams, and QEMU's hw/s390x/s390-stattrib.c.
"""

from __future__ import annotations

from enum import IntFlag

import construct as c  # type: ignore[import-untyped]

SECTION_NAME = "s390-storage_attributes"
SECTION_VERSION = 0
PAGE_SIZE = 4096


class AttributeFlag(IntFlag):
    """The low bits of a record's be64."""

    EOS = 0x01
    MORE = 0x02
    ERROR = 0x04
    DONE = 0x08


RecordHeader = c.Int64ub
Count = c.Int64ub
"""Number of bytes that follow a MORE record."""
