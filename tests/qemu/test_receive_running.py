"""`vmferry receive --guest qemu:SOCK`: a running QEMU takes a guest in, or says why not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import wait_until
from tests.qemu.machine import vmferry
from tests.qemu.running import Receiving, Running

pytestmark = pytest.mark.qemu


@pytest.fixture
def source(version: str, tmp_path: Path) -> Iterator[Running]:
    source = Running(version, tmp_path / "source")
    try:
        source.wait_for_beats()
        source.enable("return-path")
        yield source
    finally:
        source.stop()


def test_a_guest_of_a_stock_qemu_arrives(source: Running, receiving: Receiving) -> None:
    """Broken: a QEMU would not get the stream of another one, or its answers would not go back."""
    before = receiving.qemu.settings()
    source.migrate(receiving.uri)
    assert receiving.command.wait() == 0, receiving.command.said()
    receiving.qemu.wait_for_beats()
    assert source.state() == "postmigrate"
    assert receiving.qemu.settings() == before


def test_a_guest_goes_there_and_back(
    version: str, source: Running, receiving: Receiving, tmp_path: Path
) -> None:
    """Broken: both ends of vmferry would not understand each other, or a QEMU could only once."""
    ran = vmferry("send", receiving.uri, "--guest", source.text)
    assert ran.returncode == 0, ran.stderr
    assert receiving.command.wait() == 0, receiving.command.said()
    receiving.qemu.wait_for_beats()
    (tmp_path / "back").mkdir()
    back = Receiving(version, tmp_path / "back", "-S")
    try:
        ran = vmferry("send", back.uri, "--guest", receiving.qemu.text)
        assert ran.returncode == 0, ran.stderr
        assert back.command.wait() == 0
        # It was started with -S, which says that it is to wait for somebody to start it.
        assert back.qemu.state() == "paused"
        back.qemu.ask("cont")
        back.qemu.wait_for_beats()
    finally:
        back.close()


def test_a_guest_arrives_over_several_connections(
    version: str, source: Running, tmp_path: Path
) -> None:
    """Broken: multifd would only work towards vmferry's own guests."""
    receiving = Receiving(version, tmp_path, command=("--multifd-channels", "3"))
    try:
        ran = vmferry("send", receiving.uri, "--guest", source.text, "--multifd-channels", "3")
        assert ran.returncode == 0, ran.stderr
        assert receiving.command.wait() == 0
        receiving.qemu.wait_for_beats()
        source.disable("return-path")
        assert receiving.qemu.settings() == source.settings()
    finally:
        receiving.close()


def test_a_guest_may_stay_paused(version: str, source: Running, tmp_path: Path) -> None:
    """Broken: a guest would run that the user wants to look at first."""
    receiving = Receiving(version, tmp_path, command=("--paused",))
    try:
        source.migrate(receiving.uri)
        assert receiving.command.wait() == 0
        assert receiving.qemu.state() == "paused"
        assert receiving.qemu.beats() == 0
    finally:
        receiving.close()


def test_a_saved_guest_arrives(version: str, source: Running, tmp_path: Path) -> None:
    """Broken: files and commands would not be handed to QEMU."""
    saved = tmp_path / "saved"
    source.disable("return-path")
    source.migrate(f"exec:cat > {saved}")
    for number, uri in enumerate((f"file:{saved}", f"exec:cat {saved}")):
        qemu = Running(version, tmp_path / str(number), "-incoming", "defer")
        try:
            ran = vmferry("receive", uri, "--guest", qemu.text)
            assert ran.returncode == 0, ran.stderr
            qemu.wait_for_beats()
        finally:
            qemu.stop()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-m", "64"), "its RAM block pc.ram should have 32.0 MiB, not 64.0 MiB (-m 32M)"),
        (("-machine", "pc-i440fx-6.2"), "start it with -machine pc-i440fx-7.2"),
    ],
    ids=str,
)
def test_a_stream_that_does_not_fit_costs_nothing(
    version: str, source: Running, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    """Broken: a QEMU would be spoilt by a stream of which is known that it cannot load it."""
    receiving = Receiving(version, tmp_path, *options)
    try:
        ran = vmferry("send", receiving.uri, "--guest", source.text)
        assert ran.returncode == 1, ran.stderr
        assert receiving.command.wait() == 1
        assert reason in receiving.command.said().splitlines()[-1]
        source.wait_for_beats()
        assert receiving.qemu.state() == "inmigrate"
        assert receiving.qemu.ask("query-migrate") == {}
    finally:
        receiving.close()


def test_a_device_that_is_missing_is_named(version: str, tmp_path: Path) -> None:
    """Broken: who lacks a device would learn that only when QEMU has given up."""
    source = Running(version, tmp_path / "source", "-device", "e1000")
    receiving = Receiving(version, tmp_path)
    try:
        source.wait_for_beats()
        ran = vmferry("send", receiving.uri, "--guest", source.text)
        assert ran.returncode == 1, ran.stderr
        assert receiving.command.wait() == 1
        assert "e1000.rom, so it lacks a device of the source" in receiving.command.said()
        source.wait_for_beats()
        assert receiving.qemu.state() == "inmigrate"
    finally:
        receiving.close()
        source.stop()


def test_a_qemu_that_refuses_is_asked_why(version: str, tmp_path: Path) -> None:
    """Broken: the reason would be nowhere but in a log of which nobody knows."""
    source = Running(version, tmp_path / "source", "-device", "virtio-rng")
    receiving = Receiving(version, tmp_path)
    try:
        source.wait_for_beats()
        ran = vmferry("send", receiving.uri, "--guest", source.text)
        assert ran.returncode == 1, ran.stderr
        assert receiving.command.wait() == 1
        told = receiving.command.said().splitlines()[-1]
        assert "virtio-rng" in told
        source.wait_for_beats()
    finally:
        receiving.close()
        source.stop()


def test_a_signal_ends_the_wait(receiving: Receiving) -> None:
    """Broken: who stops the command would leave its socket behind, or spoil the QEMU."""
    receiving.command.process.send_signal(signal.SIGTERM)
    assert receiving.command.wait() == 1
    assert receiving.command.said().splitlines()[-1] == "vmferry: cancelled"
    assert not Path(receiving.uri.removeprefix("unix:")).exists()
    assert receiving.qemu.state() == "inmigrate"


def test_a_qemu_that_runs_takes_nothing_in(source: Running, tmp_path: Path) -> None:
    """Broken: the command would listen, and fail when a source has connected."""
    ran = vmferry("receive", f"unix:{tmp_path}/in", "--guest", source.text)
    assert ran.returncode == 1
    assert ran.stderr == (
        f"vmferry: {source.socket}: this QEMU does not wait for a guest (it is running); start it"
        " with -incoming defer\n"
    )


def test_a_qemu_that_dies_is_told(source: Running, receiving: Receiving) -> None:
    """Broken: the command would wait for ever, and the guest would be lost."""
    source.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
    source.begin_migration(receiving.uri)
    wait_until(lambda: receiving.qemu.ask("query-migrate").get("status") == "active")
    receiving.qemu.kill()
    assert receiving.command.wait() == 1
    assert "QEMU ended as the guest arrived" in receiving.command.said()
    wait_until(lambda: source.ask("query-migrate")["status"] == "failed")
    source.wait_for_beats()
