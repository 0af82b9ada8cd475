"""Declare a qcow2 image, as far as its internal snapshots need it.

Source: QEMU's documentation, docs/interop/qcow2. All numbers are big-endian.
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

MAGIC = b"QFI\xfb"

DIRTY, CORRUPT, DATA_FILE, COMPRESSION_TYPE, EXTENDED_L2 = (1 << bit for bit in range(5))
"""Bits of `incompatible_features`."""

Header = c.Struct(
    "magic" / c.Const(MAGIC),
    "version" / c.Int32ub,
    "backing_file_offset" / c.Int64ub,
    "backing_file_size" / c.Int32ub,
    "cluster_bits" / c.Int32ub,
    "size" / c.Int64ub,
    "crypt_method" / c.Int32ub,
    "l1_size" / c.Int32ub,
    "l1_table_offset" / c.Int64ub,
    "refcount_table_offset" / c.Int64ub,
    "refcount_table_clusters" / c.Int32ub,
    "nb_snapshots" / c.Int32ub,
    "snapshots_offset" / c.Int64ub,
    "incompatible_features"
    / c.IfThenElse(lambda this: this.version >= 3, c.Int64ub, c.Computed(0)),
)
"""Fixed part of the header.

`size`: bytes of the disk; a cluster has 2 ** `cluster_bits` bytes.
"""
MAX_HEADER = 80
HEADER_LENGTH_OFFSET = 100
"""Offset of the length of the header, a be32 of version 3; the extensions follow the header."""
HEADER_SIZE_V2 = 72

Extension = c.Struct("type" / c.Int32ub, "length" / c.Int32ub)
"""Head of a header extension: data follow, padded to 8 bytes; type 0 ends the list."""
DATA_FILE_NAME, FEATURE_NAMES = 0x44415441, 0x6803F857
"""Types of header extensions."""
FEATURE_NAME_SIZE = 48
"""Bytes of an entry of FEATURE_NAMES: its kind (0: incompatible), its bit, its name and NULs."""
CRYPT_METHODS = {1: "AES", 2: "LUKS"}

SnapshotHead = c.Struct(
    "l1_table_offset" / c.Int64ub,
    "l1_size" / c.Int32ub,
    "id_size" / c.Int16ub,
    "name_size" / c.Int16ub,
    "seconds" / c.Int32ub,
    "nanoseconds" / c.Int32ub,
    "guest_nanoseconds" / c.Int64ub,
    "vm_state_size" / c.Int32ub,
    "extra_size" / c.Int32ub,
)
"""Fixed part of a snapshot's entry.

Extra data, the id and the name follow; the next entry begins at a multiple of 8 bytes.
"""
SNAPSHOT_HEAD_SIZE: int = SnapshotHead.sizeof()

SnapshotExtra = c.Struct("vm_state_size" / c.Int64ub, "disk_size" / c.Int64ub)
"""The used part of a snapshot's extra data; `vm_state_size` replaces that of the head."""

OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
"""Bits of an L1 or L2 entry for the offset of the L2 table or the cluster; 0: not allocated."""
COMPRESSED = 1 << 62
"""Bit of an L2 entry for a compressed cluster."""
ZERO = 1
"""Bit of an L2 entry for a cluster that reads as zeros."""
SUBCLUSTERS = 32
"""Number of subclusters of a cluster, with EXTENDED_L2.

An L2 entry then has a second word, with a bit for each allocated subcluster, from the lowest on,
and above these a bit for each that reads as zeros.
"""
