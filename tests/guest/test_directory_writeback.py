"""RAM of an incoming guest at rest goes to the disk before the guest is whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from vmferry.guest import directory_writeback
from vmferry.guest.directory import DirectoryGuest

from tests.guest.at_rest import LAYOUT, MACHINE, STATE
from tests.patience import PATIENCE


@pytest.mark.parametrize("sealed", [False, True])
def test_begins_before_the_end(
    tmp_path: Path, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a source would wait a minute for the disk, and then take its guest back."""
    inodes: list[int] = []
    twice = threading.Event()
    real = directory_writeback.begin

    def begin(fd: int) -> None:
        real(fd)
        inodes.append(os.fstat(fd).st_ino)
        if inodes.count(inodes[0]) > 1:
            twice.set()

    monkeypatch.setattr(directory_writeback, "EVERY", 0.01)
    monkeypatch.setattr(directory_writeback, "begin", begin)
    before = set(os.listdir("/proc/self/fd"))
    guest = DirectoryGuest(str(tmp_path / "guest"))
    guest.prepare(MACHINE, LAYOUT)
    assert twice.wait(PATIENCE)
    assert set(inodes) == {os.fstat(block.fd).st_ino for block in guest.blocks}
    if sealed:
        guest.load_devices(MACHINE, STATE)
        guest.seal(running=True)
        assert not any(thread.name == "vmferry-writeback" for thread in threading.enumerate())
    guest.abort_incoming()
    assert not any(thread.name == "vmferry-writeback" for thread in threading.enumerate())
    assert set(os.listdir("/proc/self/fd")) == before
