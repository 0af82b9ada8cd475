"""Test what is read from the section of a virtio-mem device."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from vmferry.protocol.devices.fields import Decoder
from vmferry.protocol.devices.virtio_mem import EarlyState, State, path_of, read_state
from vmferry.protocol.events import Description, DeviceSection

MIB = 1 << 20
REGION, BLOCK = 256 * MIB, 2 * MIB
PLUGGED = [0, 3, 64, 127]


def bitmap(blocks: list[int], count: int = REGION // BLOCK) -> bytes:
    """Return one bit for each block, in big-endian words."""
    bits = np.zeros(-(-count // 64) * 64, np.uint8)
    bits[blocks] = 1
    return np.packbits(bits, bitorder="little").view("<u8").astype(">u8").tobytes()


def early(**changes: Any) -> DeviceSection:
    """Return the section of a machine type from 8.1 on."""
    values = {
        "address": 1 << 32,
        "region_size": REGION,
        "block_size": BLOCK,
        "node": 0,
        "size": len(PLUGGED) * BLOCK,
        "bitmap": bitmap(PLUGGED),
        **changes,
    }
    payload = EarlyState.build(values)
    return DeviceSection(0, 1, "0000:00:01.0/virtio-mem-device-early", 0, 1, payload)


def late(*, before: bytes = bytes(200), behind: bytes = b"\x05\x05later", **changes: Any) -> Any:
    """Return the section of a machine type before 8.1."""
    values = {
        "address": 1 << 32,
        "region_size": REGION,
        "block_size": BLOCK,
        "node": 0,
        "usable_region_size": REGION,
        "size": len(PLUGGED) * BLOCK,
        "requested_size": 0,
        **changes,
    }
    payload = before + State.build(values) + changes.get("bitmap", bitmap(PLUGGED)) + behind
    return DeviceSection(0, 1, "0000:00:01.0/virtio-mem", 0, 1, payload)


def described(section: DeviceSection) -> Description:
    """Return a description of the section, as QEMU's."""
    sizes = {"addr": 8, "region_size": 8, "block_size": 8, "node": 4}
    inner = [{"name": n, "type": f"uint{8 * s}", "size": s} for n, s in sizes.items()]
    fields = [
        {"name": "tmp", "type": "tmp", "size": 28, "fields": inner},
        {"name": "size", "type": "uint64", "size": 8},
        {"name": "bitmap", "type": "bitmap", "size": len(section.payload) - 36},
    ]
    device = {"name": section.name, "instance_id": 0, "version": 1, "fields": fields}
    value = {"devices": [device]}
    return Description(0, json.dumps(value).encode(), value)


@pytest.mark.parametrize("section", [early(), late(), late(behind=b"")])
@pytest.mark.parametrize("with_description", [True, False])
def test_plugged(section: DeviceSection, with_description: bool) -> None:
    """Broken: memory that is plugged in would count as unplugged, or the reverse."""
    known = described(section) if with_description and "early" in section.name else None
    found = read_state(section, REGION, Decoder(known))
    assert found is not None
    assert (found.region_size, found.block_size) == (REGION, BLOCK)
    assert np.flatnonzero(found.plugged).tolist() == PLUGGED
    assert path_of(section) == "0000:00:01.0"
    assert read_state(section, REGION * 2, Decoder(known)) is None


WRONG = [
    {"region_size": 2 * REGION},
    {"block_size": 0},
    {"block_size": 3 * MIB},
    {"block_size": BLOCK // 2},
    {"size": 5 * BLOCK},
    {"bitmap": bitmap([0, 3, 64])},
    {"bitmap": bitmap(PLUGGED)[:-1]},
    {"bitmap": b""},
]


@pytest.mark.parametrize("changes", WRONG)
@pytest.mark.parametrize("make", [early, late])
def test_nonsense_excuses_nothing(make: Any, changes: dict[str, Any]) -> None:
    """Broken: a state that contradicts itself would explain away pages that are lost."""
    section = make(**changes)
    assert read_state(section, REGION, Decoder(None)) is None
    if make is early:
        assert read_state(section, REGION, Decoder(described(section))) is None


def test_a_bit_beyond_the_region() -> None:
    """Broken: such a state would be believed."""
    section = early(region_size=3 * BLOCK, size=2 * BLOCK, bitmap=bitmap([0, 3], count=3))
    assert read_state(section, 3 * BLOCK, Decoder(None)) is None


def test_a_guest_forges_a_second_state() -> None:
    """Broken: what a guest writes into its device's queues would hide pages that were lost."""
    forged = late(size=0, bitmap=bitmap([]), before=b"", behind=b"\x05").payload
    for both in (late(before=forged), late(behind=b"\x05" + forged)):
        assert read_state(both, REGION, Decoder(None)) is None


def test_other_devices() -> None:
    """Broken: another device's state would be taken for that of memory."""
    for name in ("0000:00:01.0/virtio-net", "virtio-mem-device-early/x", "a/virtio-mem-ish"):
        assert path_of(DeviceSection(0, 1, name, 0, 1, b"")) is None
