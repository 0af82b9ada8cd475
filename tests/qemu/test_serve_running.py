"""`vmferry serve --guest qemu:SOCK`: the control of vmferry beside a QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp.legacy import QEMUMonitorProtocol

from tests.patience import wait_until
from tests.qemu.running import Command, Running

pytestmark = pytest.mark.qemu


class Served(QEMUMonitorProtocol):
    """A service beside a QEMU, as its client sees it."""

    def ask(self, name: str, **arguments: Any) -> Any:
        return self.cmd(name, **arguments)

    def status(self) -> str:
        return str(self.ask("query-migrate").get("status"))


@contextmanager
def serving(qemu: Running, folder: Path, name: str, *options: str) -> Iterator[Served]:
    """Yield a service of the guest of a QEMU; its end leaves the QEMU alone."""
    address = f"unix:{folder}/{name}.sock"
    command = Command(
        folder / f"{name}.said", "serve", "--guest", qemu.text, "--qmp", address, *options
    )
    try:
        command.wait_said("QMP on")
        with closing(Served(address.removeprefix("unix:"))) as client:
            client.connect()
            yield client
    finally:
        command.kill()


@pytest.fixture
def destination(version: str, tmp_path: Path) -> Iterator[Running]:
    destination = Running(version, tmp_path / "destination", "-incoming", "defer")
    try:
        yield destination
    finally:
        destination.stop()


def test_a_guest_is_moved_by_qmp(source: Running, destination: Running, tmp_path: Path) -> None:
    """Broken: the service would not migrate the guest of a QEMU, or forget who has it."""
    before = source.settings()
    uri = f"unix:{tmp_path}/in"
    with serving(source, tmp_path, "a") as here:
        options = ("--incoming", "defer")
        with serving(destination, tmp_path, "b", *options) as there:
            there.ask("migrate-incoming", uri=uri)
            here.ask("migrate-set-parameters", __vmferry_compress="zstd")
            here.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
            capabilities = [{"capability": "return-path", "state": True}]
            here.ask("migrate-set-capabilities", capabilities=capabilities)
            assert here.ask("query-status")["status"] == "running"
            here.ask("migrate", uri=uri)
            wait_until(lambda: here.status() == "completed", lambda: here.ask("query-migrate"))
            wait_until(lambda: there.status() == "completed", lambda: there.ask("query-migrate"))
            assert here.ask("query-status")["status"] == "postmigrate"
            told = here.ask("query-migrate")
            assert told["__vmferry_compression"]["raw-size"] > 1 << 20
            wait_until(lambda: there.ask("query-status")["status"] == "running")
            destination.wait_for_beats()
    assert source.settings() == before
    assert destination.state() == "running"


def test_a_guest_stays_by_qmp(source: Running, destination: Running, tmp_path: Path) -> None:
    """Broken: a cancelled migration would cost the guest, or limits would not reach QEMU."""
    before = source.settings()
    uri = f"unix:{tmp_path}/in"
    destination.ask("migrate-incoming", uri=uri)
    with serving(source, tmp_path, "a") as here:
        here.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
        here.ask("migrate", uri=uri)
        wait_until(lambda: here.status() == "active", lambda: here.ask("query-migrate"))
        here.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 16})
        assert source.settings()[1]["max-bandwidth"] == 1 << 16
        here.ask("migrate_cancel")
        wait_until(lambda: here.status() == "cancelled", lambda: here.ask("query-migrate"))
        assert here.ask("query-status")["status"] == "running"
        source.wait_for_beats()
        assert source.settings() == before
        here.ask("stop")
        assert source.state() == "paused"
        source.ask("cont")
        wait_until(lambda: here.ask("query-status")["status"] == "running")


def test_a_service_ends_with_its_qemu(version: str, tmp_path: Path) -> None:
    """Broken: a service would stay behind for a QEMU that is gone."""
    qemu = Running(version, tmp_path / "machine")
    command = Command(
        tmp_path / "said", "serve", "--guest", qemu.text, "--qmp", f"unix:{tmp_path}/sock"
    )
    try:
        command.wait_said("QMP on")
        qemu.kill()
        assert command.wait() == 1
        assert "the guest's process died" in command.said()
    finally:
        command.kill()
        qemu.stop()
