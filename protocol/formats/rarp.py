"""Build the frame that shows switches where a guest is now: a broadcast RARP request.

Sources: RFC 903, "A Reverse Address Resolution Protocol" (its packet is that of RFC 826), and
QEMU's QMP reference, `announce-self`. No answer is expected: the frame's only purpose is that
switches see one from the guest's address.
"""

from __future__ import annotations

import construct as c  # type: ignore[import-untyped]

ETHERTYPE = 0x8035
FRAME_SIZE = 60
"""Bytes of the smallest Ethernet frame, without its check sequence."""
MAC_SIZE = 6

RarpFrame = c.Padded(
    FRAME_SIZE,
    c.Struct(
        "destination" / c.Const(b"\xff" * MAC_SIZE),
        "source" / c.Bytes(MAC_SIZE),
        "ethertype" / c.Const(ETHERTYPE, c.Int16ub),
        "hardware_space" / c.Const(1, c.Int16ub),
        "protocol_space" / c.Const(0x0800, c.Int16ub),
        "hardware_length" / c.Const(MAC_SIZE, c.Int8ub),
        "protocol_length" / c.Const(4, c.Int8ub),
        "opcode" / c.Const(3, c.Int16ub),
        "sender_hardware" / c.Bytes(MAC_SIZE),
        "sender_protocol" / c.Const(bytes(4)),
        "target_hardware" / c.Bytes(MAC_SIZE),
        "target_protocol" / c.Const(bytes(4)),
    ),
)
"""Ethernet frame with a RARP request.

Hardware: Ethernet; protocol: IPv4, whose addresses are unknown; opcode: request reverse.
"""


def announcement(mac: bytes) -> bytes:
    """Return the frame, of FRAME_SIZE bytes, that announces the address `mac` (6 bytes)."""
    frame: bytes = RarpFrame.build(
        {"source": mac, "sender_hardware": mac, "target_hardware": mac},
    )
    return frame
