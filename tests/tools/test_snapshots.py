"""Machines' states in qcow2 images that are laid out here, by the format's specification."""

from __future__ import annotations

import io
import json
import random
import struct
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol.errors import StreamError
from vmferry.protocol.formats import qcow2
from vmferry.tools.sources.containers import unpack
from vmferry.tools.sources.snapshots import Image, MachineState

from tests import streams

DISK = 5 << 20
STEP = 512
"""Bytes that the places of clusters are a multiple of."""


@dataclass(frozen=True)
class Layout:
    """A qcow2 image with one snapshot. `hidden`: numbers of clusters of the state that are zero,
    and so not there; `order`: of the others in the file, by a seed."""

    state: bytes
    bits: int = 9
    extended: bool = False
    hidden: frozenset[int] = frozenset()
    order: int = 0
    name: bytes = b"first"
    header: dict[str, int] = field(default_factory=dict)
    head: dict[str, int] = field(default_factory=dict)

    @property
    def cluster(self) -> int:
        return 1 << self.bits

    def build(self) -> bytes:
        """Build an image: header, snapshot table, L1, L2 tables, data; each in its own cluster."""
        cluster, entry = self.cluster, 16 if self.extended else 8
        covered = cluster // entry * cluster
        first = -(-DISK // covered)
        count = -(-len(self.state) // covered)
        l1_size = first + count
        table_at = cluster
        l1_at = 2 * cluster
        l2_at = l1_at + -(-8 * l1_size // cluster) * cluster
        data_at = l2_at + count * cluster
        l1 = [0] * first + [l2_at + n * cluster for n in range(count)]
        l2, data = self._clusters(data_at)
        parts = {
            0: self._header(table_at),
            table_at: self._table(l1_at, l1_size),
            l1_at: struct.pack(f">{len(l1)}Q", *l1),
            l2_at: l2,
            data_at: data,
        }
        image = bytearray(data_at + len(data))
        for at, part in parts.items():
            image[at : at + len(part)] = part
        return bytes(image)

    def _header(self, table_at: int) -> bytes:
        features = qcow2.EXTENDED_L2 if self.extended else 0
        fields = {
            "version": 3,
            "backing_file_offset": 0,
            "backing_file_size": 0,
            "cluster_bits": self.bits,
            "size": DISK,
            "crypt_method": 0,
            "l1_size": 0,
            "l1_table_offset": 0,
            "refcount_table_offset": 0,
            "refcount_table_clusters": 0,
            "nb_snapshots": 1,
            "snapshots_offset": table_at,
            "incompatible_features": features,
        }
        raw: bytes = qcow2.Header.build({**fields, **self.header})
        return raw

    def _table(self, l1_at: int, l1_size: int) -> bytes:
        extra: bytes = qcow2.SnapshotExtra.build(
            {"vm_state_size": len(self.state), "disk_size": DISK}
        )
        fields = {
            "l1_table_offset": l1_at,
            "l1_size": l1_size,
            "id_size": 1,
            "name_size": len(self.name),
            "seconds": 1_700_000_000,
            "nanoseconds": 0,
            "guest_nanoseconds": 0,
            "vm_state_size": 0,
            "extra_size": len(extra),
        }
        raw: bytes = qcow2.SnapshotHead.build({**fields, **self.head})
        return raw + extra + b"7" + self.name

    def _clusters(self, at: int) -> tuple[bytes, bytes]:
        """Return L2 tables, and the clusters that they point to."""
        cluster = self.cluster
        count = -(-len(self.state) // cluster)
        there = [number for number in range(count) if number not in self.hidden]
        random.Random(self.order).shuffle(there)
        places = {number: at + place * cluster for place, number in enumerate(there)}
        padded = self.state.ljust(count * cluster, b"\0")
        data = b"".join(padded[n * cluster : (n + 1) * cluster] for n in there)
        words: list[int] = []
        for number in range(count):
            # A hidden cluster has a place all the same, which is not to be read.
            hidden = qcow2.ZERO if number % 2 and not self.extended else 0
            place = places.get(number, at if hidden else 0)
            words += [place | hidden if number in self.hidden else place]
            if self.extended:
                words += [0 if number in self.hidden else 0xFFFFFFFF]
        return struct.pack(f">{len(words)}Q", *words), data


def read(image: bytes) -> bytes:
    """Return the state in the only snapshot."""
    data: bytes = unpack(io.BytesIO(image), "first").stream.read()
    return data


@given(
    st.binary(min_size=1, max_size=200),
    st.integers(0, 20_000),
    st.sampled_from([9, 10, 12]),
    st.booleans(),
    st.integers(0, 99),
    st.frozensets(st.integers(0, 40)),
)
def test_state_is_read(
    piece: bytes, size: int, bits: int, extended: bool, order: int, hidden: frozenset[int]
) -> None:
    """Broken: clusters would be read from a wrong place, in a wrong order, or not as zeros."""
    bits = max(bits, 14) if extended else bits
    state = bytearray((piece * (size // len(piece) + 2))[: size + 1])
    for number in hidden:
        start = number << bits
        state[start : start + (1 << bits)] = bytes(len(state[start : start + (1 << bits)]))
    layout = Layout(bytes(state), bits, extended, hidden, order)
    assert read(layout.build()) == state


def test_subclusters_are_read() -> None:
    """Broken: parts of a cluster that are zero or not there would show what the file has there."""
    layout = Layout(bytes(range(1, 256)) * 100, 14, extended=True)
    image = bytearray(layout.build())
    at = image.index(struct.pack(">Q", 0xFFFFFFFF))
    image[at : at + 8] = struct.pack(">Q", 1 << 33 | 0xFFFFFFFD)
    expected = bytearray(layout.state)
    expected[STEP : 2 * STEP] = bytes(STEP)
    assert read(bytes(image)) == expected


def test_snapshot_is_dumped(vmferry: Any) -> None:
    """Broken: `savevm` in a qcow2 image would not be seen, by name, by id, or in a list."""
    path = vmferry.write("disk.qcow2", Layout(streams.SMALL).build())
    assert "first" in vmferry.call("dump", path).stdout
    listed = json.loads(vmferry.call("dump", "--json", path).stdout)["snapshots"]
    taken = "2023-11-14T22:13:20+00:00"
    size = len(streams.SMALL)
    assert listed == [{"id": "7", "name": "first", "taken": taken, "state_size": size}]
    for name in ("first", "7"):
        found = json.loads(vmferry.call("dump", "--json", f"{path}#{name}").stdout)
        assert found["container"] == {"layers": ["qcow2 snapshot"], "libvirt": None}
        assert found["size"] == size
    assert "it has first" in vmferry.run("verify", path).error
    assert "no snapshot 'nix'" in vmferry.run("verify", f"{path}#nix").error


def test_a_sign_in_a_file_name_is_no_snapshot(vmferry: Any) -> None:
    """Broken: a file with a # in its name could not be read."""
    assert vmferry.call("dump", vmferry.write("a#b", streams.SMALL)).exit_code == 0


SMALL = Layout(b"state" * 100)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (replace(SMALL, header={"nb_snapshots": 1 << 31}), "offset 0x3c: 2147483648 snapshots"),
        (replace(SMALL, header={"cluster_bits": 63}), r"offset 0x14: .*2\*\*63"),
        (replace(SMALL, header={"snapshots_offset": 1 << 63}), "an offset of"),
        (replace(SMALL, header={"snapshots_offset": 1 << 40}), "ends early"),
        (replace(SMALL, header={"crypt_method": 2}), "encrypted"),
        (replace(SMALL, header={"incompatible_features": 4}), "external data file"),
        (replace(SMALL, header={"version": 9}), "version 9"),
        (replace(SMALL, head={"extra_size": 1 << 31}), "extra data"),
        (replace(SMALL, head={"l1_size": 1}), "longer than its table"),
        (replace(SMALL, head={"l1_table_offset": 1 << 50}), "ends early"),
        (replace(SMALL, head={"l1_table_offset": 1 << 63}), "an offset of"),
        (replace(SMALL, state=b""), "disks only"),
        (replace(SMALL, head={"name_size": 256}), "its name of 256 bytes"),
        (replace(SMALL, head={"id_size": 256}), "a snapshot's id of 256 bytes"),
    ],
)
def test_lies_are_refused(layout: Layout, said: str) -> None:
    """Broken: a length or place in the image would be believed, and memory taken by it."""
    with pytest.raises(StreamError, match=said):
        read(layout.build())


def test_damaged_images_are_refused_or_read() -> None:
    """Broken: some damage would end in a traceback, or in a read without end."""
    layout = Layout(bytes(range(256)) * 20, hidden=frozenset({3}))
    whole = layout.build()
    chance = random.Random(5)
    for _ in range(300):
        image = bytearray(whole)
        for _ in range(chance.choice([1, 2, 5])):
            image[chance.randrange(0, len(image) - len(layout.state))] = chance.randrange(256)
        assert _read_some(bytes(image)) <= 1 << 20


def _read_some(image: bytes) -> int:
    """Read at most a megabyte of the first snapshot that there is."""
    count = 0
    try:
        disk = Image(io.BytesIO(image))
        if not disk.snapshots:
            return 0
        state = io.BufferedReader(MachineState(disk, disk.snapshots[0]))
        while count < 1 << 20 and (piece := state.read(1 << 16)):
            count += len(piece)
    except StreamError as error:
        assert str(error).startswith("offset 0x")  # noqa: PT017
    return count
