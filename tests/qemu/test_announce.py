"""Test that vmferry's announcements are those of a stock QEMU."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmferry.control.announce import AnnounceParameters
from vmferry.protocol.formats.rarp import announcement

from tests.patience import PATIENCE
from tests.qemu.machine import Machine
from tests.system.arrival import Pauses, note_arrivals, receive

MAC = bytes.fromhex("5254004a1b2c")


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    """Yield the end of a cable of UDP datagrams, one for each frame."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        note_arrivals(listening)
        listening.bind(("127.0.0.1", 0))
        yield listening


def network(wire: socket.socket) -> list[str]:
    """Return the options of a network card at the other end."""
    here = f"udp=127.0.0.1:{wire.getsockname()[1]},localaddr=127.0.0.1:0"
    card = f"rtl8139,netdev=net0,romfile=,mac={MAC.hex(':')}"
    return ["-netdev", f"socket,id=net0,{here}", "-device", card]


def frames(wire: socket.socket, count: int) -> tuple[list[bytes], list[float]]:
    """Return so many frames, and when each arrived; fail if there are more."""
    wire.settimeout(PATIENCE)
    found = [receive(wire) for _ in range(count)]
    assert silent(wire)
    return [frame for _, frame in found], [at for at, _ in found]


def silent(wire: socket.socket) -> bool:
    """Return whether nothing arrives for half a second."""
    wire.settimeout(0.5)
    try:
        wire.recv(2048)
    except TimeoutError:
        return True
    return False


def test_same_frames_at_the_same_intervals(
    version: str, tmp_path: Path, wire: socket.socket
) -> None:
    """Broken: a guest that we take in would be announced otherwise than one that QEMU takes in."""
    machine = Machine(version, tmp_path / "machine", *network(wire))
    figures = {"initial": 100, "max": 250, "rounds": 5, "step": 100}
    pauses = Pauses(AnnounceParameters(**figures).pauses())
    try:
        for _ in range(Pauses.TRIES):
            machine.ask("announce-self", **figures)
            found, times = frames(wire, 5)
            assert found == [announcement(MAC)] * 5
            pauses.add(times)
            if pauses.as_wanted():
                return
    finally:
        machine.stop()
    pytest.fail(str(pauses))


def test_paused_guest_is_not_announced(version: str, tmp_path: Path, wire: socket.socket) -> None:
    """Broken: to refuse `receive --paused --announce` would differ from what QEMU does."""
    stream = tmp_path / "stream"
    source = Machine(version, tmp_path / "source", *network(wire))
    try:
        source.migrate(f"exec:cat > {stream}")
    finally:
        source.stop()
    incoming = ("-S", "-incoming", f"exec:cat {stream}")
    target = Machine(version, tmp_path / "target", *network(wire), *incoming)
    try:
        target.wait_for("completed")
        assert silent(wire)
        target.ask("cont")
        assert frames(wire, 5)[0] == [announcement(MAC)] * 5
    finally:
        target.stop()
