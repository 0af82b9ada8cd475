"""`vmferry send --guest qemu:SOCK`: a running QEMU gives its guest away, or keeps it."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from tests.patience import wait_until
from tests.qemu.machine import vmferry
from tests.qemu.running import Command, Running

pytestmark = pytest.mark.qemu


def send(source: Running, folder: Path, *options: str) -> tuple[int, str, str]:
    ran = vmferry("send", f"unix:{folder}/in", "--guest", source.text, *options)
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--xbzrle", "--xbzrle-cache-size", "16M", "--auto-converge", "--max-bandwidth", "40M"),
        ("--no-return-path",),
    ],
    ids=str,
)
def test_a_guest_is_sent(
    source: Running, destination: Running, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Broken: the guest of a QEMU would not arrive, or its settings would not be as they were."""
    before = source.settings()
    status, out, err = send(source, tmp_path, "--json", *options)
    assert status == 0, err
    told = json.loads(out)
    assert told["status"] == "completed"
    assert told["ram"]["transferred"] > 1 << 20
    assert source.state() == "postmigrate"
    destination.wait_for_beats()
    assert destination.state() == "running"
    assert source.settings() == before
    beats = source.beats()
    destination.wait_for_beats()
    assert source.beats() == beats


def test_a_guest_is_sent_over_several_connections(
    version: str, source: Running, tmp_path: Path
) -> None:
    """Broken: options of multifd would not reach QEMU."""
    destination = Running(version, tmp_path / "destination", "-incoming", "defer")
    try:
        destination.enable("multifd")
        parameters = {"multifd-channels": 3, "multifd-compression": "zstd"}
        destination.ask("migrate-set-parameters", **parameters)
        destination.ask("migrate-incoming", uri=f"unix:{tmp_path}/in")
        before = source.settings()
        wanted = ("--multifd-channels", "3", "--multifd-compression", "zstd")
        status, out, err = send(source, tmp_path, "--json", *wanted)
        assert status == 0, err
        assert json.loads(out)["ram"]["multifd-bytes"] > 0
        destination.wait_for_beats()
        assert source.settings() == before
    finally:
        destination.stop()


def test_a_guest_is_saved(source: Running, tmp_path: Path) -> None:
    """Broken: files and commands would lack the end of the stream, or not be waited for."""
    for name, uri in (("a", f"file:{tmp_path}/a"), ("b", f"exec:sleep 1; cat > {tmp_path}/b")):
        ran = vmferry("send", uri, "--guest", source.text, "-q")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert vmferry("verify", str(tmp_path / name)).returncode == 0
        assert source.state() == "postmigrate"
        source.ask("cont")
        source.wait_for_beats()


def test_a_command_that_fails_costs_nothing(source: Running, tmp_path: Path) -> None:
    """Broken: a guest that nobody has saved would stand still."""
    before = source.settings()
    ran = vmferry("send", f"exec:cat > {tmp_path}/a; exit 3", "--guest", source.text)
    assert ran.returncode == 1
    assert "failed with status 3" in ran.stderr
    source.wait_for_beats()
    assert source.settings() == before


def test_the_guest_stays_if_the_destination_refuses(
    version: str, source: Running, tmp_path: Path
) -> None:
    """Broken: a failure would cost the guest or its settings, or nobody would say the reason."""
    before = source.settings()
    incoming = ("-incoming", f"unix:{tmp_path}/in")
    other = Running(version, tmp_path / "other", "-m", "64", *incoming)
    try:
        status, _, err = send(source, tmp_path)
    finally:
        other.stop()
    assert status == 1
    assert err.splitlines()[-1].startswith("vmferry: QEMU's migration failed: ")
    source.wait_for_beats()
    assert source.settings() == before
    check_second_attempt(version, source, tmp_path)


def check_second_attempt(version: str, source: Running, folder: Path) -> None:
    """Send the guest to a QEMU that takes it."""
    target = Running(version, folder / "second", "-incoming", f"unix:{folder}/second.in")
    try:
        ran = vmferry("send", f"unix:{folder}/second.in", "--guest", source.text)
        assert ran.returncode == 0, ran.stderr
        target.wait_for_beats()
        assert source.state() == "postmigrate"
    finally:
        target.stop()


def test_the_guest_stays_if_nobody_is_there(source: Running, tmp_path: Path) -> None:
    """Broken: a wrong address would leave other settings behind."""
    before = source.settings()
    status, _, err = send(source, tmp_path, "--downtime-limit", "17")
    assert (status, err) == (1, f"vmferry: unix:{tmp_path}/in: No such file or directory\n")
    assert source.settings() == before
    assert source.state() == "running"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_guest_back(
    version: str, source: Running, destination: Running, tmp_path: Path, number: signal.Signals
) -> None:
    """Broken: who stops the command would lose the guest, or QEMU would migrate on."""
    before = source.settings()
    options = ("--max-bandwidth", "1M", "--guest", source.text)
    command = Command(tmp_path / "said", "send", f"unix:{tmp_path}/in", *options)
    try:
        wait_until(lambda: source.ask("query-migrate").get("status") == "active", command.said)
        command.process.send_signal(number)
        assert command.wait() == 1, command.said()
    finally:
        command.kill()
    assert command.said().splitlines()[-1] == "vmferry: cancelled"
    source.wait_for_beats()
    assert source.settings() == before
    assert destination.beats() == 0
    check_second_attempt(version, source, tmp_path)


def test_a_stall_is_told(source: Running, destination: Running, tmp_path: Path) -> None:
    """Broken: nobody would hear why a migration does not end, or what the user wants then."""
    slow = ("--max-bandwidth", "8M", "--downtime-limit", "1")
    status, _, err = send(source, tmp_path, *slow, "--on-stall", "switchover")
    assert status == 0, err
    assert "rounds do not shrink" in err
    assert "what would help: --max-bandwidth of more than" in err
    assert "what would help: --auto-converge" in err
    destination.wait_for_beats()


def test_a_stall_may_end_it(source: Running, destination: Running, tmp_path: Path) -> None:
    """Broken: a migration that cannot end would not be given up, though the user said so."""
    before = source.settings()
    slow = ("--max-bandwidth", "8M", "--downtime-limit", "1")
    status, _, err = send(source, tmp_path, *slow, "--on-stall", "cancel")
    assert status == 1
    assert err.splitlines()[-1].startswith("vmferry: cancelled: rounds do not shrink")
    source.wait_for_beats()
    assert source.settings() == before
    assert destination.beats() == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--workers", "2"), "workers: QEMU reads its memory by itself; leave it out"),
        (("--tracker", "digests"), "tracker: QEMU finds out what is written by itself"),
        (("--mapped-ram",), "mapped-ram writes a file"),
    ],
    ids=str,
)
def test_options_that_no_qemu_has_are_refused(
    source: Running, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    """Broken: an option would silently have no effect."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/in")
        listener.listen()
        listener.setblocking(False)
        status, _, err = send(source, tmp_path, *options)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert status == 2
    assert reason in err


def test_a_setting_that_this_qemu_lacks_is_named(
    version: str, source: Running, tmp_path: Path
) -> None:
    """Broken: an old QEMU would fail in the middle, or the option would have no effect."""
    status, _, err = send(source, tmp_path, "--avail-switchover-bandwidth", "1G")
    lacks = "vmferry: this QEMU has no parameter avail-switchover-bandwidth\n"
    assert status == 1
    assert (err == lacks) == (version == "7.2")


def test_a_guest_that_cannot_leave_is_refused(
    version: str, source: Running, tmp_path: Path
) -> None:
    """Broken: what is known to fail would be tried, at the cost of the destination."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    source.ask(
        "blockdev-add", **{"driver": "file", "node-name": "a", "filename": f"{tmp_path}/disk"}
    )
    (tmp_path / "copy").write_bytes(bytes(1 << 20))
    source.ask(
        "blockdev-add", **{"driver": "file", "node-name": "b", "filename": f"{tmp_path}/copy"}
    )
    job = {"job-id": "copying", "device": "a", "target": "b", "sync": "full", "speed": 1}
    source.ask("blockdev-mirror", **job)
    status, _, err = send(source, tmp_path)
    assert status == 1
    assert "the guest cannot migrate: the block job copying (mirror) has not ended" in err
    source.ask("block-job-cancel", device="copying", force=True)
    waiting = Running(version, tmp_path / "waiting", "-incoming", "defer")
    try:
        status, _, err = send(waiting, tmp_path)
        assert (status, err) == (
            1,
            f"vmferry: {waiting.socket}: this QEMU has no guest to send: it waits for a guest"
            " itself\n",
        )
    finally:
        waiting.stop()


def test_a_migration_under_way_is_left_alone(source: Running, tmp_path: Path) -> None:
    """Broken: a second command would change the settings of the first one's migration."""
    source.ask("migrate-set-parameters", **{"max-bandwidth": 4096})
    source.ask("migrate", uri=f"exec:cat > {tmp_path}/a")
    before = source.settings()
    status, _, err = send(source, tmp_path)
    assert status == 1
    assert "a migration of this QEMU is under way already" in err
    assert source.settings() == before
    source.ask("migrate_cancel")


def test_the_destination_may_die(source: Running, destination: Running, tmp_path: Path) -> None:
    """Broken: a destination that is killed would take the guest with it."""
    before = source.settings()
    options = ("--max-bandwidth", "1M", "--guest", source.text)
    command = Command(tmp_path / "said", "send", f"unix:{tmp_path}/in", *options)
    try:
        wait_until(lambda: source.ask("query-migrate").get("status") == "active", command.said)
        destination.kill()
        assert command.wait() == 1, command.said()
    finally:
        command.kill()
    assert "QEMU's migration failed: " in command.said()
    source.wait_for_beats()
    assert source.settings() == before
