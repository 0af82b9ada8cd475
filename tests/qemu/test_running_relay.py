"""`vmferry send --relay`: a running QEMU's guest goes over the link of a relay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import wait_until
from tests.qemu.machine import vmferry
from tests.qemu.running import Command, Running

pytestmark = pytest.mark.qemu


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Command]:
    uris = (f"unix:{tmp_path}/link", f"unix:{tmp_path}/in")
    far = Command(tmp_path / "far", "relay", *uris, "--link", "far", "--once")
    try:
        far.wait_said("listening on")
        yield far
    finally:
        far.kill()


@pytest.mark.parametrize("options", [(), ("--compress", "zstd", "--connections", "2")], ids=str)
def test_a_guest_goes_over_a_link(
    source: Running,
    destination: Running,
    far: Command,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    """Broken: a QEMU's guest would need a relay of its own beside it."""
    before = source.settings()
    to = ("send", f"unix:{tmp_path}/link", "--relay", "--guest", source.text, "--json")
    ran = vmferry(*to, *options)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["status"] == "completed"
    assert ("compression" in json.loads(ran.stdout)) == bool(options)
    destination.wait_for_beats()
    assert far.wait() == 0, far.said()
    assert source.state() == "postmigrate"
    assert source.settings() == before


def test_the_guest_stays_if_the_link_is_gone(
    source: Running, destination: Running, far: Command, tmp_path: Path
) -> None:
    """Broken: a relay that dies would take the guest with it."""
    before = source.settings()
    slow = ("--max-bandwidth", "1M", "--reconnect", "1")
    to = ("send", f"unix:{tmp_path}/link", "--relay", "--guest", source.text)
    command = Command(tmp_path / "said", *to, *slow)
    try:
        wait_until(lambda: source.ask("query-migrate").get("status") == "active", command.said)
        wait_until(lambda: "near relay has connected" in far.said(), far.said)
        far.kill()
        assert command.wait() == 1
    finally:
        command.kill()
    assert "the link was cut for 1 s" in command.said().splitlines()[-1]
    source.wait_for_beats()
    assert source.settings() == before
    assert destination.beats() == 0


def test_there_is_no_relay(source: Running, tmp_path: Path) -> None:
    """Broken: QEMU would begin to migrate before it is known that there is a link."""
    to = ("send", f"unix:{tmp_path}/link", "--relay", "--guest", source.text)
    ran = vmferry(*to)
    assert ran.returncode == 1
    assert "cannot connect to the far relay" in ran.stderr
    assert source.ask("query-migrate") == {}


def test_a_relay_is_for_qemu(tmp_path: Path) -> None:
    """Broken: another guest would send something that no relay understands."""
    ran = vmferry("send", f"unix:{tmp_path}/link", "--relay", "--guest", "synthetic:16M")
    assert ran.returncode == 2
    assert "relay: a QEMU's guest alone (qemu:)" in ran.stderr
