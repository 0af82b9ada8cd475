"""Test that further connections of a QEMU pass relays: postcopy's urgent pages, and disks."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE, wait_until
from tests.qemu.machine import MANY_PAGES, Machine, missing
from tests.relay.network.relays import Relays

MIB = 1 << 20
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Setup:
    """A source, a destination that was not told yet where to listen, and relays between them."""

    source: Machine
    destination: Machine
    relays: Relays

    @property
    def entry(self) -> str:
        """Return the path of the socket of the near relay."""
        return self.relays.entry.removeprefix("unix:")

    @property
    def exit(self) -> str:
        """Return the path of the socket that the far relay connects to."""
        return self.relays.exit.removeprefix("unix:")

    def figures(self) -> dict[str, Any]:
        """Return the figures that the near relay wrote last; none at the beginning."""
        lines = [line for line in self.relays.near.said().splitlines() if line.startswith("{")]
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found


@contextmanager
def setup(version: str, folder: Path) -> Iterator[Setup]:
    """Have two machines and a pair of relays."""
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    options = ("--compress", "zstd", "--json")
    relays = Relays(([], []), folder / "relays", *options, address=LOOPBACK, port=port)
    source = Machine(version, folder / "source", code=MANY_PAGES)
    destination = Machine(version, folder / "destination", "-incoming", "defer", code=MANY_PAGES)
    try:
        source.wait_for_beats()
        yield Setup(source, destination, relays)
    finally:
        source.stop()
        with suppress(EOFError):
            destination.stop()
        relays.close()


@pytest.mark.timeout(300)
def test_postcopy_with_a_channel_for_urgent_pages(version: str, tmp_path: Path) -> None:
    """Broken: a guest that runs at the destination already would wait for its pages for ever."""
    with setup(version, tmp_path) as made:
        source, destination = made.source, made.destination
        for machine in (source, destination):
            machine.enable("return-path", "postcopy-ram", "postcopy-preempt")
        slow = {"max-bandwidth": 2 * MIB, "downtime-limit": 1, "max-postcopy-bandwidth": 2 * MIB}
        source.ask("migrate-set-parameters", **slow)
        destination.ask("migrate-incoming", uri=made.relays.exit)
        source.ask("migrate", uri=made.relays.entry)
        wait_until(lambda: made.figures().get("read", 0) > MIB, made.relays.near.said)
        source.ask("migrate-start-postcopy")
        source.wait_for("postcopy-active")
        wait_until(lambda: made.figures()["stream"]["postcopy"], made.relays.near.said)
        assert made.figures()["channels"] == 2
        source.ask("migrate-set-parameters", **{"max-postcopy-bandwidth": 1 << 34})
        source.wait_for("completed")
        destination.wait_for("completed")
        destination.wait_for_beats()


@pytest.mark.timeout(300)
def test_a_disk_moves_by_nbd(version: str, tmp_path: Path) -> None:
    """Broken: disks that move by NBD would lose what passes, or not move at all."""
    if shutil.which("qemu-img") is None:
        missing("qemu-img")
    image, target, copy = (tmp_path / name for name in ("disk", "target", "copy"))
    content = bytes(range(256)) * (8 * MIB // 256)
    image.write_bytes(content)
    target.write_bytes(bytes(len(content)))
    with setup(version, tmp_path) as made:
        source, destination = made.source, made.destination
        for machine, path in ((source, image), (destination, target)):
            place = {"driver": "file", "filename": str(path)}
            disk = {"driver": "raw", "node-name": "disk", "file": place}
            machine.ask("blockdev-add", **disk)
        destination.ask("nbd-server-start", addr={"type": "unix", "data": {"path": made.exit}})
        export = {"type": "nbd", "id": "disk", "node-name": "disk"}
        destination.ask("block-export-add", writable=True, **export)
        server = {"type": "unix", "path": made.entry}
        remote = {"driver": "nbd", "node-name": "remote", "server": server, "export": "disk"}
        source.ask("blockdev-add", **remote)
        job = {"job-id": "mirror", "device": "disk", "target": "remote", "sync": "full"}
        source.ask("blockdev-mirror", **job)
        wait_until(lambda: source.ask("query-block-jobs")[0]["ready"])
        source.ask("block-job-complete", device="mirror")
        wait_until(lambda: not source.ask("query-block-jobs"))
        assert target.read_bytes() == content
        # Another program reads it back, over another connection through the same relays.
        uri = f"nbd+unix:///disk?socket={made.entry}"
        command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(copy)]
        subprocess.run(command, check=True, timeout=PATIENCE)
        assert copy.read_bytes() == content
