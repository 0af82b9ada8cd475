"""The state of a virtio-mem device: which blocks of its memory are plugged in.

A source never sends the pages of blocks that are not. Machine types from 8.1 on save the device's
fields before RAM, in a section `virtio-mem-device-early` that the stream's description lists field
by field. Older ones save them inside the section `virtio-mem`, which the description lists as one
field only: there they stand behind the state that all virtio devices have, and before the
subsections. Source: QEMU's documentation, docs/devel/migration/virtio.rst, and the descriptions
and sections of captured streams.
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
"""Bits of a word of the bitmap; it has whole words."""

_PLACE = (
    "address" / c.Int64ub,
    "region_size" / c.Int64ub,
    "block_size" / c.Int64ub,
    "node" / c.Int32ub,
)
EarlyState = c.Struct(*_PLACE, "size" / c.Int64ub, "bitmap" / c.GreedyBytes)
"""The whole section `virtio-mem-device-early`. `size`: bytes that are plugged in; `bitmap`: a bit
a block, in be64 words."""
State = c.Struct(
    *_PLACE,
    "usable_region_size" / c.Int64ub,
    "size" / c.Int64ub,
    "requested_size" / c.Int64ub,
)
"""What stands inside the section `virtio-mem` of older machine types; the bitmap follows."""


@dataclass(frozen=True, eq=False)
class PluggedMemory:
    """What is plugged in of a region of `region_size` bytes at the guest-physical `address`:
    `plugged` (n,) says so of each block of `block_size` bytes."""

    address: int
    region_size: int
    block_size: int
    plugged: npt.NDArray[np.bool_]


def path_of(section: DeviceSection) -> str | None:
    """Return the device's path, with which the name of its RAM block begins; None: the section is
    no state of a virtio-mem device."""
    path, _, name = section.name.rpartition("/")
    return path if name in (NAME, EARLY_NAME) else None


def read_state(section: DeviceSection, region_size: int, decoder: Decoder) -> PluggedMemory | None:
    """Return what is plugged in of a region of `region_size` bytes; None where the section does
    not tell, or tells of another region.

    `decoder`: knows the stream's description. Raises StreamError where the section is not as
    described.
    """
    if section.name.endswith(EARLY_NAME):
        return _read_early(section, region_size, decoder)
    found = list(_search(whole(section.payload), region_size))
    # A guest can write to parts of the section. Where it forges a second one, neither is believed.
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
        # Where the description is not used, fields have the names that they are declared by.
        address = values.get("address")
    if not isinstance(block_size, int) or not isinstance(size, int):
        return None
    if not isinstance(address, int):
        return None
    if said != region_size or not isinstance(bitmap, bytes):
        return None
    return _checked(address, region_size, block_size, size, bitmap)


def _search(payload: bytes, region_size: int) -> Iterator[PluggedMemory]:
    """Yield every place of the payload that has a sensible state of such a region."""
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
    """Whether the device's own fields may end here: a subsection follows, or nothing."""
    return end == len(payload) or payload[end : end + 1] == bytes([SectionType.SUBSECTION])


def _bitmap_size(region_size: int, block_size: int) -> int:
    return -(-region_size // (block_size * _WORD)) * _WORD // 8


def _checked(
    address: int, region_size: int, block_size: int, size: int, bitmap: bytes
) -> PluggedMemory | None:
    """The state, if its parts agree with each other."""
    if block_size == 0 or block_size & (block_size - 1) or region_size % block_size:
        return None
    if len(bitmap) != _bitmap_size(region_size, block_size):
        return None
    words = np.frombuffer(bitmap, ">u8").astype("<u8").view(np.uint8)
    bits = np.unpackbits(words, bitorder="little").view(np.bool_)
    plugged = bits[: region_size // block_size]
    agrees = not bits[len(plugged) :].any() and int(plugged.sum()) * block_size == size
    return PluggedMemory(address, region_size, block_size, plugged) if agrees else None
