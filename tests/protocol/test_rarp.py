"""The frame of an announcement."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol.formats.rarp import RarpFrame, announcement


def test_frame() -> None:
    """Broken: switches would not know the frame, or learn another address."""
    mac = "525400123456"
    assert announcement(bytes.fromhex(mac)).hex() == (
        f"ffffffffffff{mac}8035"  # Ethernet: everybody, from this address, RARP
        "0001080006040003"  # RFC 903: Ethernet, IPv4, 6 and 4 bytes, request reverse
        f"{mac}00000000{mac}00000000" + "00" * 18
    )


@given(st.binary(min_size=6, max_size=6))
def test_there_and_back(mac: bytes) -> None:
    """Broken: what is declared would not be what is sent."""
    frame = RarpFrame.parse(announcement(mac))
    assert frame.source == frame.sender_hardware == frame.target_hardware == mac
