"""XBZRLE between vmferry and a real QEMU, both ways."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.mapping import map_block
from vmferry.sender.coordinator import Sender
from vmferry.sender.figures import Figures
from vmferry.sender.parameters import SendParameters

from tests.qemu.machine import (
    MANY_PAGES,
    MIB,
    Machine,
    check_arrived,
    ram_options,
    rebuilt_stream,
    saved_stream,
    vmferry,
)

MANY = 2000
"""XBZRLE pages that must have crossed."""


def _xbzrle_on(machine: Machine) -> None:
    machine.ask("migrate-set-capabilities", capabilities=[{"capability": "xbzrle", "state": True}])


def test_takes_what_qemu_encodes(version: str, tmp_path: Path) -> None:
    """Broken: RAM would differ from what a stock QEMU makes of the same differences."""
    stream, saved = tmp_path / "stream", tmp_path / "saved"
    source = Machine(version, tmp_path / "source", code=MANY_PAGES)
    try:
        source.wait_for_beats()
        _xbzrle_on(source)
        source.migrate_until(
            f"exec:cat > {stream}",
            lambda told: told.get("xbzrle-cache", {}).get("pages", 0) >= MANY,
            2 * MIB,
        )
    finally:
        source.stop()
    dumped = vmferry("dump", "--json", str(stream))
    assert sum(block["xbzrle"] for block in json.loads(dumped.stdout)["blocks"]) >= MANY
    received = vmferry("receive", f"file:{stream}", "--guest", f"dir:{saved}")
    assert received.returncode == 0, received.stderr
    checked = vmferry("verify", str(rebuilt_stream(version, tmp_path, stream)), *ram_options(saved))
    assert checked.returncode == 0, checked.stdout + checked.stderr


class Busy(DirectoryGuest):
    """A guest whose RAM is written to, a little in each page, where the real guest has nothing."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    @property
    def running(self) -> bool:
        return not self._stop.is_set()

    def pause(self) -> None:
        self._stop.set()
        self._writer.join()

    def resume(self) -> None:
        raise AssertionError("the migration failed")

    def _write(self) -> None:
        (block,) = (block for block in self.blocks if block.name == "pc.ram")
        pages = map_block(block).reshape(-1, block.page_size)[3072:5120]
        random = np.random.default_rng(3)
        pages[:] = random.integers(0, 256, pages.shape, np.uint8)
        while not self._stop.wait(0.02):
            places = random.integers(0, block.page_size, (6, len(pages)))
            pages[np.arange(len(pages)), places] += 1
            # Pages that change altogether, or turn zero, and come back.
            pages[random.integers(0, len(pages), 20)] = 0
            pages[random.integers(0, len(pages), 20)] = random.integers(0, 256, block.page_size)


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_qemu_takes_what_we_encode(version: str, scheme: str, tmp_path: Path) -> None:
    """Broken: a QEMU would refuse our differences, or rebuild other RAM of them."""
    saved, stream = tmp_path / "saved", saved_stream(version, tmp_path)
    received = vmferry("receive", f"file:{stream}", "--guest", f"dir:{saved}")
    assert received.returncode == 0, received.stderr
    incoming = f"unix:{tmp_path}/in.sock"
    if scheme == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as server:
            incoming = f"tcp:127.0.0.1:{server.getsockname()[1]}"
    destination = Machine(version, tmp_path / "destination", "-S", "-incoming", "defer")
    guest = Busy(str(saved))
    try:
        _xbzrle_on(destination)
        destination.ask("migrate-incoming", uri=incoming)
        sender = Sender(
            guest,
            incoming,
            SendParameters(max_bandwidth=40 << 20, downtime_limit=0.0, workers=1, xbzrle=True),
        )

        def let_it_end(figures: Figures) -> None:
            if figures.xbzrle is not None and figures.xbzrle.pages >= MANY:
                guest.pause()

        figures = sender.run(let_it_end)
        check_arrived(destination, saved, tmp_path)
    finally:
        guest.pause()
        guest.close()
        destination.stop()
    assert figures.xbzrle is not None
    assert figures.xbzrle.pages >= MANY
