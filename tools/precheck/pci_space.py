"""Compares the PCI configuration spaces of a device at both ends, as a destination does.

Sources: "PCI Local Bus Specification" (revision 3.0), chapter 6 and appendix H; "PCI Express Base
Specification", chapter 7; and what QEMU 7.2 refuses of a stream in which single bytes are changed:
it compares what the guest cannot write, except for status bits and the subsystem's numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

SIZE = 256
"""Bytes of the configuration space that are compared here."""
Bars: TypeAlias = Mapping[int, int]
"""The bytes of a device's memory and I/O regions, by the number of their register."""

_VERSION = (2).to_bytes(4, "big")
"""The version of a PCI device's state, which precedes its configuration space."""
_HEAD = {
    **dict.fromkeys((0x00, 0x01), "vendor"),
    **dict.fromkeys((0x02, 0x03), "device id"),
    0x08: "revision",
    **dict.fromkeys((0x09, 0x0A, 0x0B), "class"),
    0x0E: "type of header",
    0x34: "place of the capabilities",
}
"""The bytes of the header that are compared, and what they hold."""
_STATUS, _HAS_CAPABILITIES = 0x06, 0x10
_BARS, _BRIDGE = range(0x10, 0x28, 4), 1
_HEADER_TYPE, _FIRST_CAPABILITY = 0x0E, 0x34
_VIRTIO_ACCESS = 5
"""The type of the virtio capability through which a guest reads and writes a device."""


@dataclass(frozen=True)
class _Capability:
    """A capability that is compared: its name, its bytes, and those that are not compared."""

    name: str
    size: int
    free: frozenset[int] = frozenset()


_MSIX = 0x11
_VENDOR = 0x09
_CAPABILITIES = {
    0x01: _Capability("power management", 8, frozenset((4, 5))),
    0x05: _Capability("MSI", 4, frozenset((2,))),
    0x0D: _Capability("bridge's subsystem", 8),
    0x10: _Capability("PCI Express", 8),
    _MSIX: _Capability("MSI-X", 12, frozenset((3,))),
}


@dataclass(frozen=True)
class Difference:
    """A byte that a destination refuses: what it belongs to, and its number in the space."""

    what: str
    place: int


def space_of(state: bytes) -> bytes | None:
    """Return the configuration space in the state of a device, or None if it is no PCI device."""
    if not state.startswith(_VERSION) or len(state) < len(_VERSION) + SIZE:
        return None
    space = state[len(_VERSION) : len(_VERSION) + SIZE]
    return None if space[:2] in (b"\0\0", b"\xff\xff") else space


def vectors(space: bytes) -> int | None:
    """Return the number of MSI-X vectors, or None if the device has no MSI-X."""
    for place, kind in _capabilities(space):
        if kind == _MSIX:
            return (int.from_bytes(space[place + 2 : place + 4], "little") & 0x7FF) + 1
    return None


def first_difference(a: bytes, b: bytes, bars: Bars) -> Difference | None:
    """Return the first byte of A's space that B refuses, or None; `bars` are B's."""
    found = [
        Difference(what, place)
        for place, mask, what in _compared(b, bars)
        if (a[place] ^ b[place]) & mask
    ]
    return min(found, key=lambda difference: difference.place, default=None)


def _compared(space: bytes, bars: Bars) -> Iterator[tuple[int, int, str]]:
    """Yield each byte that is compared, with a mask of its bits and what it holds."""
    for place, what in _HEAD.items():
        yield place, 0xFF, what
    yield _STATUS, _HAS_CAPABILITIES, "capabilities"
    registers = _BARS[:2] if space[_HEADER_TYPE] & 0x7F == _BRIDGE else _BARS
    for number, register in enumerate(registers):
        size = bars.get(number)
        if size is not None:
            for index, mask in enumerate(((size - 1) & 0xFFFFFFFF).to_bytes(4, "little")):
                yield register + index, mask, f"size of region {number}"
    for place, kind in _capabilities(space):
        yield from _compared_capability(space, place, kind)


def _compared_capability(space: bytes, place: int, kind: int) -> Iterator[tuple[int, int, str]]:
    yield place, 0xFF, "capabilities"
    yield place + 1, 0xFF, "capabilities"
    known = _CAPABILITIES.get(kind)
    if kind == _VENDOR:
        access = space[place + 3] == _VIRTIO_ACCESS
        size = 4 if access else min(space[place + 2], 24)
        known = _Capability("vendor's capability", size)
    if known is None:
        return
    for index in range(2, known.size):
        if index not in known.free and place + index < SIZE:
            yield place + index, 0xFF, known.name
    if kind == _MSIX:
        # The rest of this byte are switches of the guest.
        yield place + 3, 0x07, known.name


def _capabilities(space: bytes) -> Iterator[tuple[int, int]]:
    """Yield the place and the kind of each capability, as far as the list makes sense."""
    place = space[_FIRST_CAPABILITY] & 0xFC
    seen: set[int] = set()
    while 0x40 <= place <= SIZE - 4 and place not in seen:
        seen.add(place)
        yield place, space[place]
        place = space[place + 1] & 0xFC
