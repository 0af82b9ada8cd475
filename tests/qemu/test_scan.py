"""Guests of real QEMUs whose shared memory vmferry moves by itself: `qemu:SOCK,scan`."""

from __future__ import annotations

from pathlib import Path

import pytest
from vmferry.guest.open import open_guest
from vmferry.sender.coordinator import Sender
from vmferry.sender.precopy import Precopy

from tests.patience import PATIENCE, wait_until
from tests.qemu.machine import rebuilt_stream, stock_ram, vmferry
from tests.qemu.scanning import ScanMachine, receiving

KINDS = {"7.2": "memfd", "10": "file"}
"""A kind of shared memory for each QEMU; from 8.1 on, QEMU saves a memfd although it is shared."""
WORKERS = ("--workers", "2")


def check_same_memory(source: ScanMachine, target: ScanMachine) -> None:
    """Both guests stand still, and no byte of their memory differs."""
    differing = (source.ram() != target.ram()).nonzero()[0]
    assert not len(differing), f"{len(differing)} bytes differ, the first one at {differing[0]:#x}"


def test_live_guest_to_stock(version: str, tmp_path: Path) -> None:
    """Broken: a stock QEMU would get other memory than the guest had when it was paused."""
    source = ScanMachine(version, tmp_path / "source", kind=KINDS[version])
    options = ("-S", "-incoming", f"unix:{tmp_path}/in")
    target = ScanMachine(version, tmp_path / "target", *options, kind="memfd")
    try:
        source.wait_for_beats()
        sent = vmferry("send", f"unix:{tmp_path}/in", "--guest", source.guest, *WORKERS)
        assert sent.returncode == 0, sent.stderr
        target.wait_for("completed")
        check_same_memory(source, target)
        assert source.status == "postmigrate"
        target.ask("cont")
        target.wait_for_beats()
    finally:
        source.stop()
        target.stop()


def test_live_guest_between_two_of_vmferry(version: str, tmp_path: Path) -> None:
    """Broken: a QEMU whose memory vmferry fills would run a guest with other memory or devices."""
    kind = KINDS[version]
    source = ScanMachine(version, tmp_path / "source", kind=kind)
    target = ScanMachine(version, tmp_path / "target", "-incoming", "defer", kind=kind)
    try:
        source.wait_for_beats()
        settings = source.settings(), target.settings()
        receive = receiving(target.guest, tmp_path, "--paused")
        sent = vmferry("send", f"unix:{tmp_path}/in", "--guest", source.guest, *WORKERS)
        assert sent.returncode == 0, sent.stderr
        assert receive.wait(PATIENCE) == 0
        check_same_memory(source, target)
        assert (source.settings(), target.settings()) == settings
        assert (source.status, target.status) == ("postmigrate", "paused")
        target.ask("cont")
        target.wait_for_beats()
    finally:
        source.stop()
        target.stop()


def test_stock_guest_arrives(version: str, tmp_path: Path) -> None:
    """Broken: what a stock QEMU sends could not be put into memory that another one shares."""
    source = ScanMachine(version, tmp_path / "source", kind="memfd")
    target = ScanMachine(version, tmp_path / "target", "-incoming", "defer", kind=KINDS[version])
    try:
        source.wait_for_beats()
        source.ask("stop")
        receive = receiving(target.guest, tmp_path)
        source.enable("return-path")
        source.migrate(f"unix:{tmp_path}/in")
        assert receive.wait(PATIENCE) == 0
        check_same_memory(source, target)
        assert target.status == "paused", "a guest that was stopped by its user was started"
    finally:
        source.stop()
        target.stop()


def test_stream_is_an_ordinary_one(version: str, tmp_path: Path) -> None:
    """Broken: the stream would say that memory is missing, or a block or a device would be."""
    stream = tmp_path / "stream"
    source = ScanMachine(version, tmp_path / "source", kind=KINDS[version])
    try:
        source.wait_for_beats()
        source.ask("stop")
        sent = vmferry("send", f"file:{stream}", "--guest", source.guest)
        assert sent.returncode == 0, sent.stderr
    finally:
        source.stop()
    dumped = vmferry("dump", str(stream))
    assert "x-ignore-shared" not in dumped.stdout
    assert b"x-ignore-shared" not in stream.read_bytes()
    assert vmferry("dump", str(stream), "--devices", "globalstate").returncode == 0
    again = rebuilt_stream(version, tmp_path, stream)
    checked = vmferry("verify", str(again), *stock_ram(stream, tmp_path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_memory_without_its_last_round_is_noticed(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: the tests of this file would not see that law 3 is broken."""
    source = ScanMachine(version, tmp_path / "source", kind=KINDS[version])
    target = ScanMachine(
        version, tmp_path / "target", "-S", "-incoming", f"unix:{tmp_path}/in", kind="memfd"
    )
    monkeypatch.setattr(Precopy, "send_last", lambda _: None)
    try:
        source.wait_for_beats()
        guest = open_guest(source.guest)
        try:
            Sender(guest, f"unix:{tmp_path}/in").run()
        finally:
            guest.close()
        target.wait_for("completed")
        with pytest.raises(AssertionError, match="bytes differ"):
            check_same_memory(source, target)
    finally:
        source.stop()
        target.stop()


def test_refused_guest_runs_on_and_leaves_later(version: str, tmp_path: Path) -> None:
    """Broken: a destination that lacks a device would cost the guest, or its next migration."""
    device = ("-device", "e1000,id=net,romfile=")
    source = ScanMachine(version, tmp_path / "source", *device, kind=KINDS[version])
    lacking = ScanMachine(version, tmp_path / "lacking", "-incoming", "defer", kind=KINDS[version])
    target = ScanMachine(version, tmp_path / "target", *device, "-incoming", "defer", kind="file")
    try:
        source.wait_for_beats()
        settings = source.settings()
        receive = receiving(lacking.guest, tmp_path)
        sent = vmferry("send", f"unix:{tmp_path}/in", "--guest", source.guest)
        assert sent.returncode == 1
        assert "its log says why" in sent.stderr
        assert receive.wait(PATIENCE) == 1
        assert "refused the guest" in (tmp_path / "log").read_text()
        assert (source.settings(), source.status) == (settings, "running")
        wait_until(lambda: lacking.ended)
        source.wait_for_beats()
        (tmp_path / "in").unlink(missing_ok=True)
        receive = receiving(target.guest, tmp_path)
        sent = vmferry("send", f"unix:{tmp_path}/in", "--guest", source.guest)
        assert sent.returncode == 0, sent.stderr
        assert receive.wait(PATIENCE) == 0
        target.wait_for_beats()
    finally:
        source.stop()
        target.stop()
        lacking.stop()


def test_memory_that_is_not_shared_is_refused(version: str, tmp_path: Path) -> None:
    """Broken: a user would not learn how to start the QEMU, or the guest would not run on."""
    machine = ScanMachine(version, tmp_path / "source", kind="ram")
    try:
        machine.wait_for_beats()
        sent = vmferry("send", f"unix:{tmp_path}/in", "--guest", machine.guest)
        assert sent.returncode == 1
        assert len(sent.stderr.splitlines()) == 1
        assert "memory-backend-file,id=pc.ram,size=32M" in sent.stderr
        assert "leave out ,scan" in sent.stderr
        assert machine.status == "running"
    finally:
        machine.stop()
