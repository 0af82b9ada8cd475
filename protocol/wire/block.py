"""Declare the iterative section `block`: disks that move with the guest (QEMU up to 9.0).

Records of be64, `sector << 9 | flags`; a block of a disk is always 1 MiB on the wire, though the
disk may end within it. Source: captured streams; QEMU's capability `zero-blocks`.
"""

from __future__ import annotations

from enum import IntFlag

import construct as c  # type: ignore[import-untyped]

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
