"""A source that uses several connections is named; it cannot be received from."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from vmferry.guest.errors import MigrationError
from vmferry.guest.open import open_guest
from vmferry.protocol import events
from vmferry.receiver.coordinator import ReceiveParameters, Receiver

from tests.streams import every_event, to_bytes

STREAM = to_bytes([event for event in every_event() if not isinstance(event, events.Command)])
CHANNEL = struct.pack(">II", 0x11223344, 1) + bytes(56)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (CHANNEL, True),
        (STREAM[: STREAM.index(b"ram") + 60], True),
        (b"", True),
        (STREAM[: len(STREAM) // 2], False),
    ],
    ids=["channel", "no pages", "nothing", "cut"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_named(tmp_path: Path, data: bytes, named: bool, workers: int) -> None:
    """Broken: nobody would see that multifd has to be switched off at the source."""
    (tmp_path / "stream").write_bytes(data)
    guest = open_guest(f"dir:{tmp_path / 'guest'}")
    parameters = ReceiveParameters(workers=workers)
    try:
        with pytest.raises(MigrationError) as caught:
            Receiver(guest, f"file:{tmp_path / 'stream'}", parameters).run()
    finally:
        guest.close()
    assert ("migrate_set_capability multifd off" in str(caught.value)) == named
