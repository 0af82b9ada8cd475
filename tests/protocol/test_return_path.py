"""Messages from the destination to the source."""

from __future__ import annotations

import pytest
from vmferry.protocol.errors import StreamError
from vmferry.protocol.return_path import OtherMessage, Pong, ReturnPathReader, Shut, pong, shut


def test_messages_survive_any_cut() -> None:
    """Broken: an answer that arrives in pieces would be lost or misread."""
    data = pong(0x01020304) + b"\x00\x06\x00\x04\x00\x00\x00\x01" + shut(1)
    reader = ReturnPathReader()
    found = [message for i in range(len(data)) for message in reader.feed(data[i : i + 1])]
    assert found == [Pong(0x01020304), OtherMessage(6, b"\0\0\0\x01"), Shut(1)]
    assert ReturnPathReader().feed(data) == found


def test_wire_form() -> None:
    """Broken: a stock QEMU source would not understand the answer."""
    assert shut(0) == bytes.fromhex("0001 0004 00000000")
    assert pong(5) == bytes.fromhex("0002 0004 00000005")


@pytest.mark.parametrize("data", ["0063 0000", "0001 ffff", "0001 0002 0000"])
def test_nonsense_is_refused(data: str) -> None:
    """Broken: garbage from the peer would be waited for or believed."""
    reader = ReturnPathReader()
    reader.feed(shut(0))
    with pytest.raises(StreamError, match=r"^offset 0x8 \(section 'return path'\): "):
        reader.feed(bytes.fromhex(data))
