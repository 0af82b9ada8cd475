"""Reads the internal snapshots of a qcow2 image, and the machine state in one of them.

The machine state is stored like the disk, by the snapshot's own tables, after the end of the disk.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, BinaryIO

import construct as c  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from ...protocol.errors import StreamError, UnsupportedError
from ...protocol.formats import qcow2

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
"""The range of the logarithm of a cluster's size in bytes. QEMU has this limit and the next three.
"""
MAX_SNAPSHOTS = 65536
MAX_EXTRA = 1024
MAX_NAME = 255
"""The longest snapshot name or id in bytes; QEMU writes no longer ones."""
FIRST_NAMES = 4
"""The number of snapshots that an error message names."""
_READ = qcow2.DIRTY | qcow2.CORRUPT | qcow2.COMPRESSION_TYPE | qcow2.EXTENDED_L2
"""The incompatible features that are supported, or that do not affect reading."""
_NOWHERE = -1
MAX_EXTENSIONS = 64
MAX_EXTENSION = 1 << 16
"""The largest header extension in bytes."""
_LOAD = "load the snapshot in QEMU (-loadvm) and migrate it to a file: exec:cat > FILE"


@dataclass(frozen=True)
class Snapshot:
    """An entry in the snapshot table; sizes are in bytes.

    `state_size` is the size of the machine state, 0 if the snapshot has none. `l1_offset` is the
    file offset of the L1 table, `l1_size` its number of entries. `offset` is the file offset of
    this entry.
    """

    id: str
    name: str
    taken: datetime
    state_size: int
    disk_size: int
    l1_offset: int
    l1_size: int
    offset: int

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys id, name, taken, state_size."""
        taken = self.taken.isoformat()
        return {"id": self.id, "name": self.name, "taken": taken, "state_size": self.state_size}


class Image:
    """A qcow2 image in a seekable file. Raises StreamError, UnsupportedError."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        header = self._take(qcow2.Header, 0, qcow2.MAX_HEADER)
        self.cluster_bits: int = header.cluster_bits
        if header.version not in (2, 3):
            raise UnsupportedError(f"qcow2 version {header.version}", offset=4)
        if not MIN_CLUSTER_BITS <= self.cluster_bits <= MAX_CLUSTER_BITS:
            raise StreamError(f"qcow2 clusters of 2**{self.cluster_bits} bytes", offset=20)
        if header.crypt_method:
            method = qcow2.CRYPT_METHODS.get(header.crypt_method, f"method {header.crypt_method}")
            message = f"a qcow2 image encrypted with {method}; {_LOAD}"
            raise UnsupportedError(message, offset=32)
        unknown = header.incompatible_features & ~_READ
        if unknown:
            raise UnsupportedError(self._features_message(unknown), offset=72)
        self.extended = bool(header.incompatible_features & qcow2.EXTENDED_L2)
        self._disk_size: int = header.size
        self.snapshots = self._snapshots(header.nb_snapshots, header.snapshots_offset)

    def _features_message(self, unknown: int) -> str:
        """Return an error message that names the unsupported features of the image and says what to
        do.
        """
        extensions = self._extensions()
        if unknown & qcow2.DATA_FILE:
            name = _printable(extensions.get(qcow2.DATA_FILE_NAME, b"")) or "not named"
            return (
                f"a qcow2 image whose data are in an external data file ({name}): QEMU keeps no "
                "machine's state in one"
            )
        table = extensions.get(qcow2.FEATURE_NAMES, b"")
        names = {1 << bit: f"bit {bit}" for bit in range(64) if unknown & 1 << bit}
        size = qcow2.FEATURE_NAME_SIZE
        for start in range(0, len(table) - size + 1, size):
            kind, bit = table[start], table[start + 1]
            if kind == 0 and bit < 64 and 1 << bit in names:
                names[1 << bit] = _printable(table[start + 2 : start + size].rstrip(b"\0"))
        return (
            f"a qcow2 image with features that are not read ({', '.join(names.values())}); {_LOAD}"
        )

    def _extensions(self) -> dict[int, bytes]:
        """Return the header extensions by type, up to the first one that is not valid."""
        found: dict[int, bytes] = {}
        try:
            at = int.from_bytes(self.read(qcow2.HEADER_LENGTH_OFFSET, 4), "big")
            while at < 1 << self.cluster_bits and len(found) < MAX_EXTENSIONS:
                extension = qcow2.Extension.parse(self.read(at, qcow2.Extension.sizeof()))
                at += qcow2.Extension.sizeof()
                if not extension.type or extension.length > MAX_EXTENSION:
                    break
                found[extension.type] = self.read(at, extension.length)
                at += -(-extension.length // 8) * 8
        except StreamError:
            # The image is rejected anyway; the error message then has no names.
            return found
        return found

    def find(self, wanted: str) -> Snapshot:
        """Return the snapshot with this name or, failing that, this id. Raises StreamError if there
        is none.
        """
        for key in ("name", "id"):
            for snapshot in self.snapshots:
                if getattr(snapshot, key) == wanted:
                    return snapshot
        message = f"no snapshot {wanted!r} in the qcow2 image; it has {names_of(self.snapshots)}"
        raise StreamError(message, offset=0)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes at `offset`. Raises StreamError if there are fewer."""
        if offset >= 1 << 63:
            raise StreamError(f"an offset of {offset:#x} in the qcow2 image", offset=offset)
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise StreamError("the qcow2 image ends early", offset=offset + len(data))
        return data

    def _take(self, declaration: c.Construct, offset: int, most: int) -> Any:
        self._file.seek(offset)
        try:
            return declaration.parse(self._file.read(most))
        except c.ConstructError:
            raise StreamError("not a qcow2 header", offset=offset) from None

    def _snapshots(self, count: int, offset: int) -> tuple[Snapshot, ...]:
        if count > MAX_SNAPSHOTS:
            raise StreamError(f"{count} snapshots in the qcow2 image", offset=60)
        found = []
        for _ in range(count):
            snapshot, size = self._snapshot(offset)
            found.append(snapshot)
            offset += -(-size // 8) * 8
        return tuple(found)

    def _snapshot(self, offset: int) -> tuple[Snapshot, int]:
        """Return the snapshot table entry at `offset`, and its size in bytes."""
        head = qcow2.SnapshotHead.parse(self.read(offset, qcow2.SNAPSHOT_HEAD_SIZE))
        if head.extra_size > MAX_EXTRA:
            message = f"{head.extra_size} bytes of extra data in a snapshot"
            raise StreamError(message, offset=offset + qcow2.SNAPSHOT_HEAD_SIZE - 4)
        if max(head.id_size, head.name_size) > MAX_NAME:
            message = f"a snapshot's id of {head.id_size} bytes, its name of {head.name_size} bytes"
            raise StreamError(message, offset=offset)
        size = qcow2.SNAPSHOT_HEAD_SIZE + head.extra_size + head.id_size + head.name_size
        data = self.read(offset, size)[qcow2.SNAPSHOT_HEAD_SIZE :]
        extra = c.Container(vm_state_size=head.vm_state_size, disk_size=self._disk_size)
        if head.extra_size >= qcow2.SnapshotExtra.sizeof():
            extra = qcow2.SnapshotExtra.parse(data)
        id_, name = data[head.extra_size :][: head.id_size], data[head.extra_size + head.id_size :]
        snapshot = Snapshot(
            _printable(id_),
            _printable(name),
            datetime.fromtimestamp(head.seconds, timezone.utc),
            extra.vm_state_size,
            extra.disk_size,
            head.l1_table_offset,
            head.l1_size,
            offset,
        )
        return snapshot, size


def names_of(snapshots: Sequence[Snapshot]) -> str:
    """Return the names of the first snapshots, for an error message."""
    names = [snapshot.name for snapshot in snapshots[:FIRST_NAMES]] or ["none"]
    return ", ".join([*names, "..."] if len(snapshots) > FIRST_NAMES else names)


def _printable(raw: bytes) -> str:
    """Return the text with all characters replaced that a terminal should not receive."""
    text = raw.decode(errors="replace")
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


class MachineState(io.RawIOBase):
    """The machine state of a snapshot, as a seekable file that holds a migration stream."""

    def __init__(self, image: Image, snapshot: Snapshot) -> None:
        """Locate the machine state. Raises StreamError if the snapshot has none."""
        if not snapshot.state_size:
            message = f"snapshot {snapshot.name!r} is of disks only, without a machine's state"
            raise StreamError(message, offset=snapshot.offset)
        self._image = image
        self._snapshot = snapshot
        self._cluster = 1 << image.cluster_bits
        self._entry = 16 if image.extended else 8
        self._covered = self._cluster // self._entry * self._cluster
        """The number of bytes of disk or state that one L2 table maps."""
        self._unit = self._cluster // qcow2.SUBCLUSTERS if image.extended else self._cluster
        self._first = -(-snapshot.disk_size // self._covered)
        """The index of the L1 table entry where the state begins."""
        self._position = 0
        self._table: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def readable(self) -> bool:
        """Return True: the state is readable."""
        return True

    def seekable(self) -> bool:
        """Return True: the state is seekable."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to an offset, which may be past the end, and return it. Raises ValueError."""
        start = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: self._snapshot.state_size,
        }[whence]
        if start + offset < 0:
            raise ValueError(f"a place before the beginning: {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, target: WriteableBuffer, /) -> int:
        """Read one piece that is contiguous in the file, or zeros for clusters that the file does
        not have.

        Raises StreamError.
        """
        left = max(0, self._snapshot.state_size - self._position)
        view = memoryview(target).cast("B")[:left]
        if not len(view):
            return 0
        number, within = divmod(self._position, self._covered)
        places = self._places(self._first + number)[within // self._unit :]
        start = within % self._unit
        place = int(places[0])
        step = 0 if place == _NOWHERE else self._unit
        needed = -(-(start + len(view)) // self._unit)
        other = np.flatnonzero(np.diff(places[:needed]) != step)
        units = int(other[0]) + 1 if len(other) else min(needed, len(places))
        view = view[: units * self._unit - start]
        if place == _NOWHERE:
            np.frombuffer(view, np.uint8)[:] = 0
        else:
            view[:] = self._image.read(place + start, len(view))
        self._position += len(view)
        return len(view)

    def _places(self, number: int) -> npt.NDArray[np.int64]:
        """Return the file offsets of the clusters (or subclusters) that an L1 table entry maps."""
        if self._table[0] != number:
            self._table = (number, self._read_table(number))
        return self._table[1]

    def _read_table(self, number: int) -> npt.NDArray[np.int64]:
        if number >= self._snapshot.l1_size:
            message = f"the state of {self._snapshot.state_size} bytes is longer than its table"
            raise StreamError(message, offset=self._snapshot.offset)
        entry = int.from_bytes(self._image.read(self._snapshot.l1_offset + 8 * number, 8), "big")
        offset = entry & qcow2.OFFSET_MASK
        if not offset:
            return np.full(self._covered // self._unit, _NOWHERE)
        words = np.frombuffer(self._image.read(offset, self._cluster), ">u8").astype(np.uint64)
        entries = words[:: self._entry // 8]
        if (entries & np.uint64(qcow2.COMPRESSED)).any():
            raise UnsupportedError("compressed clusters in a machine's state", offset=offset)
        places = (entries & np.uint64(qcow2.OFFSET_MASK)).astype(np.int64)
        if self._image.extended:
            return self._subclusters(places, words[1::2])
        there = (places != 0) & ((entries & np.uint64(qcow2.ZERO)) == 0)
        return np.where(there, places, _NOWHERE)

    def _subclusters(
        self, places: npt.NDArray[np.int64], bits: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int64]:
        steps = np.arange(qcow2.SUBCLUSTERS)
        there = (bits[:, None] >> steps.astype(np.uint64) & np.uint64(1)).astype(np.bool_)
        all_places = places[:, None] + steps * self._unit
        return np.where(there & (places != 0)[:, None], all_places, _NOWHERE).reshape(-1)
