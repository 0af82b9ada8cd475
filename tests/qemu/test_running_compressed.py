"""A compressed link of which one end, or both, is a running QEMU: carriers, and the handover."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.patience import wait_until
from tests.qemu.machine import vmferry
from tests.qemu.running import Command, Receiving, Running, carriers

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("compress", ["zstd", "zstd:3", "adaptive"])
def test_a_guest_is_sent_compressed(source: Running, receiving: Receiving, compress: str) -> None:
    """Broken: two QEMUs would need more of the link than two other guests, or lose the guest."""
    before, there = source.settings(), receiving.qemu.settings()
    options = ("--guest", source.text, "--compress", compress, "--json")
    ran = vmferry("send", receiving.uri, *options)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["compression"]["raw-size"] > 1 << 20
    assert told["compression"]["compressed-size"] == told["ram"]["transferred"]
    if compress != "adaptive":
        assert told["compression"]["compression-rate"] > 2
    assert receiving.command.wait() == 0, receiving.command.said()
    receiving.qemu.wait_for_beats()
    assert source.state() == "postmigrate"
    assert (source.settings(), receiving.qemu.settings()) == (before, there)


def test_a_stopped_guest_stays_stopped(source: Running, receiving: Receiving) -> None:
    """Broken: a guest would run at its destination that somebody had stopped."""
    source.ask("stop")
    ran = vmferry("send", receiving.uri, "--guest", source.text, "--compress", "zstd")
    assert ran.returncode == 0, ran.stderr
    assert receiving.command.wait() == 0, receiving.command.said()
    assert receiving.qemu.state() == "paused"
    receiving.qemu.ask("cont")
    receiving.qemu.wait_for_beats()


def test_a_guest_is_saved_compressed(version: str, source: Running, tmp_path: Path) -> None:
    """Broken: what is saved compressed would not be the guest, or could not be loaded again."""
    saved = tmp_path / "saved"
    options = ("--guest", source.text, "--compress", "zstd")
    ran = vmferry("send", f"file:{saved}", *options)
    assert ran.returncode == 0, ran.stderr
    assert vmferry("verify", str(saved)).returncode == 0
    again = Running(version, tmp_path / "again", "-incoming", "defer")
    try:
        ran = vmferry("receive", f"exec:cat {saved}", "--guest", again.text)
        assert ran.returncode == 0, ran.stderr
        again.wait_for_beats()
    finally:
        again.stop()


def test_a_guest_goes_to_a_guest_of_vmferry(version: str, source: Running, tmp_path: Path) -> None:
    """Broken: QEMU's compressed stream would only be for QEMUs."""
    uri, folder = f"unix:{tmp_path}/in", tmp_path / "guest"
    command = Command(tmp_path / "received", "receive", uri, "--guest", f"dir:{folder}")
    try:
        command.wait_said("listening on")
        ran = vmferry("send", uri, "--guest", source.text, "--compress", "zstd")
        assert ran.returncode == 0, ran.stderr
        assert command.wait() == 0, command.said()
    finally:
        command.kill()
    assert source.state() == "postmigrate"
    back = Running(version, tmp_path / "back", "-incoming", f"unix:{tmp_path}/back.in")
    try:
        ran = vmferry("send", f"unix:{tmp_path}/back.in", "--guest", f"dir:{folder}")
        assert ran.returncode == 0, ran.stderr
        back.wait_for_beats()
    finally:
        back.stop()


def test_the_limit_is_kept_on_the_link(source: Running, receiving: Receiving) -> None:
    """Broken: --max-bandwidth would limit what QEMU writes, and not what the link carries."""
    limit = 2 << 20
    options = ("--compress", "zstd", "--max-bandwidth", str(limit), "--json")
    ran = vmferry("send", receiving.uri, "--guest", source.text, *options)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    seconds = told["total-time"] / 1000
    assert told["ram"]["precopy-bytes"] >= 0
    # A window of the limit, and what is sent once the guest is stopped, come on top.
    assert told["ram"]["transferred"] < limit * (seconds + 0.5) + (4 << 20)
    assert told["compression"]["raw-size"] > told["ram"]["transferred"]
    receiving.qemu.wait_for_beats()


@pytest.mark.parametrize("victim", ["sending", "receiving"])
def test_a_carrier_that_dies_costs_nothing(
    source: Running, receiving: Receiving, tmp_path: Path, victim: str
) -> None:
    """Broken: the guest would run at both ends or at none, or its settings would be others."""
    before = source.settings()
    options = ("--guest", source.text, "--compress", "zstd", "--max-bandwidth", "64K")
    sending = Command(tmp_path / "sent", "send", receiving.uri, *options)
    try:
        wait_until(lambda: source.ask("query-migrate").get("status") == "active", sending.said)
        wait_until(lambda: receiving.qemu.ask("query-migrate").get("status") == "active")
        command = sending if victim == "sending" else receiving.command
        (carrier,) = carriers(command)
        os.kill(carrier, signal.SIGKILL)
        assert sending.wait() == 1, sending.said()
        assert receiving.command.wait() == 1, receiving.command.said()
    finally:
        sending.kill()
    source.wait_for_beats()
    assert source.settings() == before
    assert receiving.qemu.beats() == 0
