"""Define the numbers and names that identify the parts of a stream and the records of its RAM.

Source: QEMU's documentation, docs/devel/migration/main.rst ("Stream structure").
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAGIC = 0x5145564D
"""The characters QEVM, as a be32."""
VERSION = 3
MAX_NAME = 255
"""Limit for the name of a section, a RAM block or a disk in bytes: one byte holds its length."""
DEFAULT_PAGE_SIZE = 4096
"""Page size in bytes of most guests, where neither stream nor user gives another."""
RAM_SECTION = "ram"
"""Name of the section that brings RAM."""
RAM_VERSION = 4
"""Version of the section `ram`."""


class SectionType(IntEnum):
    """The byte that begins each part of a stream."""

    EOF = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    SUBSECTION = 0x05
    VMDESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    FOOTER = 0x7E


class CommandType(IntEnum):
    """The number of a COMMAND."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


COMMAND_LENGTHS = {
    CommandType.OPEN_RETURN_PATH: 0,
    CommandType.PING: 4,
    CommandType.POSTCOPY_LISTEN: 0,
    CommandType.POSTCOPY_RUN: 0,
    CommandType.SWITCHOVER_START: 0,
}
"""Bytes of data of each command that carries no data, or only one number."""


class RamFlag(IntFlag):
    """The low bits of the be64 that begins a record of `ram`."""

    ZERO = 0x02
    MEM_SIZE = 0x04
    PAGE = 0x08
    EOS = 0x10
    CONTINUE = 0x20
    XBZRLE = 0x40
    HOOK = 0x80
    COMPRESS_PAGE = 0x100
    MULTIFD_FLUSH = 0x200


PAGE_BITS = b"configuration/target-page-bits"
CAPABILITIES = b"configuration/capabilities"
UUID = b"configuration/uuid"

MIN_PAGE_BITS, MAX_PAGE_BITS = 8, 16
PAGE_SIZES = tuple(1 << bits for bits in range(MIN_PAGE_BITS, MAX_PAGE_BITS + 1))
"""The possible sizes of a page in bytes."""

MAX_SECTION_ID = 1 << 24
MAX_DEVICE_VERSION = 100_000_000
"""Limits for section ids and device versions; no real device section reaches them.

The version of some devices is a date, as 20061113.
"""
