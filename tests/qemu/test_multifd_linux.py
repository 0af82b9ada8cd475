"""A Linux that runs, moved over channels of multifd from a QEMU into vmferry, and on to a QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE
from tests.qemu.machine import MIB, vmferry
from tests.qemu.test_multifd_receive import receiving
from tests.relay.network.guests import Guest, beats

pytestmark = pytest.mark.slow

TABLE = [
    ("10", 2, "none"),
    ("7.2", 4, "zlib"),
    ("10", 8, "zstd"),
    ("7.2", 8, "none"),
    ("10", 4, "zlib"),
    ("7.2", 2, "zstd"),
]
"""QEMU that the guest arrives at, number of channels, and compression.

It leaves a QEMU 10: one of 7.2 under TCG loses some of what Linux writes as it migrates.
"""


def prepared(guest: Guest, channels: int, compression: str) -> Guest:
    """Return a machine that is to migrate over so many channels."""
    guest.enable("multifd")
    names = {"multifd-channels": channels, "multifd-compression": compression}
    guest.ask("migrate-set-parameters", **names)
    return guest


def in_third_round(told: Any) -> bool:
    """Return whether QEMU sends pages for the third time."""
    return bool(told["ram"]["dirty-sync-count"] >= 3)


def live_into_vmferry(source: Guest, folder: Path, channels: int) -> None:
    """Migrate the running guest into a folder."""
    with receiving(folder, channels) as command:
        source.migrate_until(f"unix:{folder}/in", in_third_round, 64 * MIB)
        _, errors = command.communicate(timeout=PATIENCE)
        assert command.returncode == 0, errors


@pytest.mark.parametrize(("version", "channels", "compression"), TABLE)
def test_linux_goes_on(version: str, channels: int, compression: str, tmp_path: Path) -> None:
    """Broken: a page of a real system would be lost, old or displaced, or it would stand still."""
    source = Guest("linux", "10", tmp_path / "source")
    try:
        prepared(source, channels, compression).wait_for_beats(3)
        live_into_vmferry(source, tmp_path, channels)
        said = source.said()
    finally:
        source.stop()
    listening = ("-S", "-incoming", "defer")
    target = Guest("linux", version, tmp_path / "target", *listening)
    try:
        uri = f"unix:{tmp_path}/out"
        prepared(target, channels, compression).ask("migrate-incoming", uri=uri)
        ways = (f"--multifd-channels={channels}", f"--multifd-compression={compression}")
        sent = vmferry("send", uri, "--guest", f"dir:{tmp_path}/saved", *ways)
        assert sent.returncode == 0, sent.stderr
        target.wait_for("completed")
        target.ask("cont")
        target.wait_for_beats(3)
        said += target.said()
    finally:
        target.stop()
    found = beats(said)
    assert found == [*range(1, len(found) + 1)]
