"""libvirt migrates a running domain through a pair of relays."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.patience import wait_until
from tests.qemu.libvirt import Libvirt
from tests.qemu.machine import missing

pytestmark = pytest.mark.qemu

NEAR = "127.0.0.2"
"""Address at which the near relay listens, as if the destination was another host."""


@pytest.fixture
def folders() -> Iterator[tuple[Path, Path, Path]]:
    """Yield folders with short paths that libvirt's own user may enter."""
    with TemporaryDirectory() as one, TemporaryDirectory() as two, TemporaryDirectory() as three:
        yield Path(one), Path(two), Path(three)


def free_port() -> int:
    """Return a port that is free at both addresses of this host at this moment."""
    with socket.create_server((NEAR, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def start_relay(stack: ExitStack, listen: str, connect: str, *options: str) -> None:
    """Start a relay, and wait until it listens."""
    command = [sys.executable, "-m", "vmferry", "relay", listen, connect, *options]
    relay = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    stack.callback(relay.communicate)
    stack.callback(relay.terminate)
    assert relay.stderr is not None
    assert "listening" in relay.stderr.readline()


@pytest.mark.parametrize(
    "options",
    [(), ("--p2p", "--parallel", "--parallel-connections", "2")],
    ids=["plain", "parallel"],
)
def test_a_domain_moves(folders: tuple[Path, Path, Path], options: tuple[str, ...]) -> None:
    """Broken: people with libvirt could not use the relay, as it needs a return path, several
    connections, or an order of them that libvirt does not have."""
    for program in ("libvirtd", "virsh", "qemu-system-x86_64"):
        if shutil.which(program) is None:
            missing(program)
    here, there, disk = folders
    port, link = free_port(), free_port()
    with ExitStack() as stack:
        source, destination = Libvirt(here, disk=disk), Libvirt(there, disk=disk)
        stack.callback(source.stop)
        stack.callback(destination.stop)
        far = (f"tcp:127.0.0.1:{link}", f"tcp:127.0.0.1:{port}", "--link", "far")
        near = (f"tcp:{NEAR}:{port}", f"tcp:127.0.0.1:{link}", "--link", "near")
        for relay in (far, (*near, "--compress", "zstd")):
            start_relay(stack, *relay)
        source.ask("create", f"{here}/domain")
        source.wait_for_beats()
        uris = ("--migrateuri", f"tcp://{NEAR}:{port}", "--listen-address", "127.0.0.1")
        to = f"qemu+unix:///session?socket={destination.socket}"
        source.ask("migrate", "--live", "--unsafe", "small", to, *uris, *options)
        assert source.ask("list", "--name").strip() == ""
        assert destination.ask("domstate", "small").strip() == "running"
        beats = len((disk / "serial").read_bytes())
        wait_until(lambda: len((disk / "serial").read_bytes()) > beats)
