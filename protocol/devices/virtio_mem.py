"""Read the state of a virtio-mem device: which blocks of its memory are plugged in.

A source never sends the pages of blocks that are not plugged in. Machine types from 8.1 on save the
device's fields before RAM, in a section `virtio-mem-device-early` that the stream's description
lists field by field. Older ones save them inside the section `virtio-mem`, which the description
lists as one field only: there they follow the state that all virtio devices have, and precede the
subsections. Source: QEMU's documentation, docs/devel/migration/virtio.rst, and the descriptions and
sections of captured streams.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import construct as c  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from ..events import DeviceSection
from ..wire.kept import whole
from ..wire.marks import SectionType
from .fields import Decoder, leaves

EARLY_NAME = "virtio-mem-device-early"
NAME = "virtio-mem"
_WORD = 64
"""Bits of a word of the bitmap, which has whole words."""

_PLACE = (
    "address" / c.Int64ub,
    "region_size" / c.Int64ub,
    "block_size" / c.Int64ub,
    "node" / c.Int32ub,
)
EarlyState = c.Struct(*_PLACE, "size" / c.Int64ub, "bitmap" / c.GreedyBytes)
"""The whole section `virtio-mem-device-early`.

`size`: bytes that are plugged in; `bitmap`: one bit per block, in be64 words.
"""
State = c.Struct(
    *_PLACE,
    "usable_region_size" / c.Int64ub,
    "size" / c.Int64ub,
    "requested_size" / c.Int64ub,
)
"""The fields inside the section `virtio-mem` of older machine types; the bitmap follows."""


@dataclass(frozen=True, eq=False)
class PluggedMemory:
    """The plugged-in blocks of a region of `region_size` bytes at the guest-physical `address`.

    `plugged` (n,): whether each block of `block_size` bytes is plugged in.
    """

    address: int
    region_size: int
    block_size: int
    plugged: npt.NDArray[np.bool_]


def path_of(section: DeviceSection) -> str | None:
    """Return the device's path, with which the name of its RAM block begins.

    Returns None if the section is not the state of a virtio-mem device.
    """
    path, _, name = section.name.rpartition("/")
    return path if name in (NAME, EARLY_NAME) else None


def read_state(section: DeviceSection, region_size: int, decoder: Decoder) -> PluggedMemory | None:
    """Return the plugged-in blocks of a region of `region_size` bytes.

    Returns None if the section does not say, or is about another region. `decoder`: knows the
    stream's description. Raises StreamError if the section is not as described.
    """
    if section.name.endswith(EARLY_NAME):
        return _read_early(section, region_size, decoder)
    found = list(_search(whole(section.payload), region_size))
    # A guest can write to parts of the section. If it forges a second state, neither is accepted.
    return found[0] if len(found) == 1 else None


def _read_early(section: DeviceSection, region_size: int, decoder: Decoder) -> PluggedMemory | None:
    described = leaves(decoder.decode(section))
    values = {path.rpartition("/")[2]: field.value for path, field in described}
    if "payload" in values:
        try:
            values = dict(EarlyState.parse(section.payload))
        except c.ConstructError:
            return None
    address, said, block_size, size, bitmap = (
        values.get(name) for name in ("addr", "region_size", "block_size", "size", "bitmap")
    )
    if not isinstance(address, int):
        # Without a description, fields have the names of the declaration.
        address = values.get("address")
    if not isinstance(block_size, int) or not isinstance(size, int):
        return None
    if not isinstance(address, int):
        return None
    if said != region_size or not isinstance(bitmap, bytes):
        return None
    return _checked(address, region_size, block_size, size, bitmap)


def _search(payload: bytes, region_size: int) -> Iterator[PluggedMemory]:
    """Yield the state at every place of the payload that has a valid one for such a region."""
    ahead = State.address.sizeof()
    for match in re.finditer(re.escape(region_size.to_bytes(8, "big")), payload):
        start = match.start() - ahead
        if start < 0 or start + State.sizeof() > len(payload):
            continue
        state = State.parse(payload[start:])
        if state.block_size == 0 or state.address % state.block_size:
            continue
        behind = start + State.sizeof()
        end = behind + _bitmap_size(region_size, state.block_size)
        if state.usable_region_size > region_size or not _may_end(payload, end):
            continue
        bitmap = payload[behind:end]
        found = _checked(state.address, region_size, state.block_size, state.size, bitmap)
        if found is not None:
            yield found


def _may_end(payload: bytes, end: int) -> bool:
    """Return whether the device's own fields may end here: a subsection or nothing follows."""
    return end == len(payload) or payload[end : end + 1] == bytes([SectionType.SUBSECTION])


def _bitmap_size(region_size: int, block_size: int) -> int:
    return -(-region_size // (block_size * _WORD)) * _WORD // 8


def _checked(
    address: int, region_size: int, block_size: int, size: int, bitmap: bytes
) -> PluggedMemory | None:
    """Return the state if its parts agree with each other, or None."""
    if block_size == 0 or block_size & (block_size - 1) or region_size % block_size:
        return None
    if len(bitmap) != _bitmap_size(region_size, block_size):
        return None
    words = np.frombuffer(bitmap, ">u8").astype("<u8").view(np.uint8)
    bits = np.unpackbits(words, bitorder="little").view(np.bool_)
    plugged = bits[: region_size // block_size]
    agrees = not bits[len(plugged) :].any() and int(plugged.sum()) * block_size == size
    return PluggedMemory(address, region_size, block_size, plugged) if agrees else None
