"""Identifies a PCI device by the configuration space in its state.

Sources: "PCI Local Bus Specification" (revision 3.0), chapter 6.1; streams of QEMU, where the state
of a PCI device begins with the be32 number 2 and this space.
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

PciState = c.Struct(
    "version" / c.Const(2, c.Int32ub),
    "vendor" / c.Int16ul,
    "device" / c.Int16ul,
    c.Padding(4),
    "revision" / c.Int8ul,
    "interface" / c.Int8ul,
    "kind" / c.Int16ul,
    c.Padding(32),
    "subsystem_vendor" / c.Int16ul,
    "subsystem" / c.Int16ul,
)
_SPACE = 4 + 256


def identity(state: bytes) -> str:
    """Return `VENDOR:DEVICE:SUBSYSTEM:CLASS:REVISION` in hexadecimal, or "" if it is not a PCI
    device.
    """
    if len(state) < _SPACE:
        return ""
    try:
        found = PciState.parse(state)
    except c.ConstructError:
        return ""
    if found.vendor in (0, 0xFFFF):
        return ""
    ids = (found.vendor, found.device, found.subsystem, found.kind)
    return ":".join([*(f"{number:04x}" for number in ids), f"{found.revision:02x}"])
