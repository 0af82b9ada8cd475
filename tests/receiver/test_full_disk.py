"""A `dir:` guest that arrives on a disk which is too small for it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import MigrationError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.receiver.coordinator import ReceiveParameters, Receiver
from vmferry.sender.coordinator import Sender
from vmferry.sender.parameters import SendParameters

from tests.qemu.machine import missing

pytestmark = pytest.mark.root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with room for 2 MiB."""
    if os.geteuid():
        missing("a root user")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.parametrize(("workers", "channels"), [(0, None), (1, None), (None, 2)])
def test_full_disk_is_named(small_disk: Path, workers: int | None, channels: int | None) -> None:
    """Broken: a person would read that a process died, and not why."""
    source, guest = SyntheticGuest.parse("8M"), DirectoryGuest(str(small_disk / "guest"))
    receiver = Receiver(
        guest, "tcp:127.0.0.1:0", ReceiveParameters(workers=workers, multifd_channels=channels)
    )
    ends: list[str] = []
    threads: list[threading.Thread] = []

    def send(address: str) -> None:
        try:
            Sender(source, address, SendParameters(multifd_channels=channels)).run()
        except MigrationError as error:
            ends.append(str(error))

    def listening(address: str) -> None:
        threads.append(threading.Thread(target=send, args=(address,), daemon=True))
        threads[0].start()

    try:
        with pytest.raises(MigrationError, match=r"disk full|No space left on device"):
            receiver.run(on_listening=listening)
        threads[0].join(20)
        assert ends
        assert source.running
        assert list(small_disk.iterdir()) == []
    finally:
        source.close()
