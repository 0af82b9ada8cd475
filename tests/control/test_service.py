"""Whole services, driven by the QMP client that QEMU's own tests use."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.control.serving import SERVE, Monitor, Serve, Serving, play, play_stopped
from tests.patience import PATIENCE


def test_script(serve: Serve, tmp_path: Path) -> None:
    """Broken: a client that drives QEMU could not drive two services from start to end."""
    source = serve("synthetic:32M,dirty-rate=1M")
    destination = serve("synthetic:", "--incoming", "defer")
    seen = play(source, destination, f"unix:{tmp_path}/migrate")
    assert seen.events == {
        "failed": [("MIGRATION", "setup"), ("MIGRATION", "failed")],
        "cancelled": [
            ("MIGRATION", "setup"),
            ("MIGRATION_PASS", None),
            ("MIGRATION", "active"),
            ("MIGRATION", "cancelling"),
            ("MIGRATION", "cancelled"),
        ],
        "completed at source": [
            ("MIGRATION", "setup"),
            ("MIGRATION_PASS", None),
            ("MIGRATION", "active"),
            ("STOP", None),
            ("MIGRATION", "pre-switchover"),
            ("MIGRATION", "device"),
            ("MIGRATION_PASS", None),
            ("MIGRATION", "completed"),
        ],
        "completed at destination": [
            ("MIGRATION", "setup"),
            ("MIGRATION", "active"),
            ("RESUME", None),
            ("MIGRATION", "completed"),
        ],
        "continued": [("RESUME", None), ("STOP", None)],
    }
    assert seen.run_states == [
        *("running", "running", "inmigrate", "finish-migrate"),
        *("postmigrate", "running", "paused"),
    ]
    for service in (source, destination):
        service.ask("quit")
        event = service.qmp.pull_event(wait=PATIENCE)
        assert event is not None
        assert event["event"] == "SHUTDOWN"
        assert event["data"] == {"guest": False, "reason": "host-qmp-quit"}
        assert service.wait() == (0, "")


def test_back_and_forth(serve: Serve, tmp_path: Path) -> None:
    """Broken: a guest that arrived could not leave again."""
    there = serve("synthetic:", "--incoming", f"unix:{tmp_path}/one")
    here = serve("synthetic:16M,dirty-rate=4M")
    here.ask("migrate", uri=f"unix:{tmp_path}/one")
    assert here.wait_until_over() == "completed"
    back = serve("synthetic:", "--incoming", f"unix:{tmp_path}/two", "--paused")
    there.wait_for("completed")
    there.ask("migrate", uri=f"unix:{tmp_path}/two")
    assert there.wait_until_over() == "completed"
    back.wait_for("completed")
    assert (there.run_state(), back.run_state()) == ("postmigrate", "paused")
    assert back.ask("query-migrate") == {"status": "completed"}


def test_through_a_file(serve: Serve, tmp_path: Path) -> None:
    """Broken: a client could not save a guest as a mapped-ram file, or start one from it."""
    source = serve("synthetic:16M,dirty-rate=4M")
    source.set(mapped_ram=True)
    source.ask("migrate", uri=f"unix:{tmp_path}/socket")
    assert "send to file:" in source.wait_for("failed")["error-desc"]
    source.ask("migrate-set-parameters", direct_io=True)
    source.ask("migrate", uri=f"file:{tmp_path}/saved")
    assert source.wait_until_over() == "completed"
    target = serve("synthetic:", "--incoming", "defer")
    target.ask("migrate-set-parameters", direct_io=True)
    target.ask("migrate-incoming", uri=f"file:{tmp_path}/saved")
    target.wait_for("completed")
    assert target.run_state() == "running"


def test_limits_change_while_it_runs(serve: Serve) -> None:
    """Broken: a speed or downtime that is set would only hold for the next migration."""
    source = serve("synthetic:64M,dirty-rate=1M")
    source.ask("migrate_set_speed", value=1 << 20)
    source.ask("migrate", uri="exec:cat > /dev/null")
    source.wait_for("active")
    sent = source.wait_for_bytes(1 << 20)
    assert sent < 8 << 20
    source.ask("migrate_set_downtime", value=1.5)
    assert source.ask("query-migrate")["expected-downtime"] == 1500
    source.ask("migrate_set_speed", value=-5)
    started = time.monotonic()
    # With the old limit it would take as many seconds as the guest has MiB, for each round.
    assert source.wait_until_over() == "completed"
    assert time.monotonic() - started < 64
    assert source.ask("query-migrate-parameters")["max-bandwidth"] == 0


def test_stopped_guest_stays_stopped(serve: Serve) -> None:
    """Broken: a guest that somebody stopped would run after a migration that failed."""
    source = serve("synthetic:16M")
    source.set(pause_before_switchover=True)
    source.ask("stop")
    source.ask("migrate", uri="exec:cat > /dev/null")
    source.wait_for("pre-switchover")
    source.ask("migrate_cancel")
    assert source.wait_until_over() == "cancelled"
    assert source.run_state() == "paused"
    source.ask("cont")
    assert source.run_state() == "running"


def test_stopped_guest_stays_stopped_where_it_arrives(serve: Serve, tmp_path: Path) -> None:
    """Broken: a guest that somebody stopped would run at the destination."""
    source, destination = serve("synthetic:8M"), serve("synthetic:", "--incoming", "defer")
    seen = play_stopped(source, destination, f"unix:{tmp_path}/migrate")
    assert seen.run_states == ["postmigrate", "paused", "running"]


def test_descriptor_by_name(serve: Serve) -> None:
    """Broken: who opens the connections (libvirt does) could not hand them to either end."""
    source, destination = serve("synthetic:16M"), serve("synthetic:", "--incoming", "defer")
    near, far = socket.socketpair()
    with near, far:
        for side, end in ((source, near), (destination, far)):
            side.qmp.send_fd_scm(end.fileno())
            side.ask("getfd", fdname="wire")
    destination.ask("migrate-incoming", uri="fd:wire")
    source.ask("migrate", uri="fd:wire")
    assert source.wait_until_over() == "completed"
    destination.wait_for("completed")
    assert "not found" in source.error("closefd", fdname="wire")


def test_service_s_own_descriptors_are_no_channels(serve: Serve) -> None:
    """Broken: a client could write a stream into the service's own files and sockets."""
    source = serve("synthetic:1M")
    descriptors = os.listdir(f"/proc/{source.process.pid}/fd")
    assert len(descriptors) > 8
    for name in descriptors:
        if int(name) > 2:
            assert "not been found" in source.error("migrate", uri=f"fd:{name}")
    assert source.run_state() == "running"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("exec:echo no stream", "not a migration stream"),
        ("exec:true", "offset 0x0"),
        ("tcp:127.0.0.1:x", "not tcp:HOST:PORT"),
        ("nope:", "unknown migration URI"),
    ],
)
def test_failed_incoming_ends_the_service(tmp_path: Path, uri: str, said: str) -> None:
    """Broken: whoever waits for the guest would wait for ever."""
    ended = subprocess.run(
        [*SERVE, "--guest", "synthetic:", "--qmp", f"unix:{tmp_path}/qmp", "--incoming", uri],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said_where, error = ended.stderr.splitlines()
    assert (ended.returncode, said_where) == (1, f"QMP on unix:{tmp_path}/qmp")
    assert error.startswith("vmferry: ")
    assert said in error


def test_incoming_may_be_tried_again(serve: Serve, tmp_path: Path) -> None:
    """Broken: one wrong URI would cost the waiting service."""
    service = serve("synthetic:", "--incoming", "defer")
    assert "unknown migration URI" in service.error("migrate-incoming", uri="nope:1")
    assert "No such file" in service.error("migrate-incoming", uri=f"unix:{tmp_path}/no/such")
    service.ask("migrate-incoming", uri=f"unix:{tmp_path}/one")
    address = service.ask("query-migrate")["socket-address"]
    assert address == [{"type": "unix", "path": f"{tmp_path}/one"}]


def test_several_clients(serve: Serve) -> None:
    """Broken: a second client would wait, or miss what happens."""
    service = serve("synthetic:1M")
    other = Monitor(service.connect())
    service.ask("stop")
    assert other.events() == [("STOP", None)]
    other.ask("cont")
    assert service.events() == [("STOP", None), ("RESUME", None)]
    other.qmp.close()
    assert service.run_state() == "running"


def test_signal_ends_it_as_quit_does(serve: Serve) -> None:
    """Broken: a service that is told to end leaves its guest, or says nothing to its clients."""
    service = serve("synthetic:1M")
    service.process.terminate()
    event = service.qmp.pull_event(wait=PATIENCE)
    assert event is not None
    assert event["data"] == {"guest": False, "reason": "host-signal"}
    assert service.wait() == (0, "")


def test_death_of_the_guest_ends_the_service(serve: Serve, tmp_path: Path) -> None:
    """Broken: a service without a guest says that it runs; its clients wait for nothing."""
    source = serve("synthetic:16M")
    destination = serve("synthetic:", "--incoming", f"unix:{tmp_path}/migrate")
    source.ask("migrate", uri=f"unix:{tmp_path}/migrate")
    assert source.wait_until_over() == "completed"
    destination.wait_for("completed")
    guest_of(source).kill()
    # It is only what is left of a guest that runs elsewhere.
    assert source.run_state() == "postmigrate"
    guest_of(destination).kill()
    assert destination.wait() == (1, "vmferry: the guest's process died\n")
    source.ask("quit")
    assert source.wait() == (0, "")


def test_death_of_the_guest_on_its_way(serve: Serve) -> None:
    """Broken: a traceback, or a service that sends the memory of a dead guest to the end."""
    source = serve("synthetic:16M")
    source.ask("migrate_set_speed", value=1 << 20)
    source.ask("migrate", uri="exec:cat > /dev/null")
    source.wait_for("active")
    guest_of(source).kill()
    assert source.wait() == (1, "vmferry: the guest's process died\n")


def guest_of(service: Serving) -> psutil.Process:
    """Return the process of the guest."""
    (guest,) = (
        child
        for child in psutil.Process(service.process.pid).children()
        if "synthetic_process" in "".join(child.cmdline())
    )
    return guest


def test_quit_in_the_midst_of_a_migration(serve: Serve, tmp_path: Path) -> None:
    """Broken: a service would not end while it sends, or leave a half guest at the other end."""
    source = serve("synthetic:32M,dirty-rate=1M")
    destination = serve("synthetic:", "--incoming", f"unix:{tmp_path}/migrate")
    source.ask("migrate_set_speed", value=1 << 20)
    source.ask("migrate", uri=f"unix:{tmp_path}/migrate")
    source.wait_for("active")
    source.ask("quit")
    assert source.wait()[0] == 0
    assert destination.wait()[0] == 1


def test_fork_server_killed_between_two_migrations(serve: Serve, tmp_path: Path) -> None:
    """Broken: a service that runs for months could not send its guest any more."""
    source = serve("synthetic:16M")
    source.ask("migrate", uri="exec:exit 1")
    assert source.wait_until_over() == "failed"
    (server,) = (
        child
        for child in psutil.Process(source.process.pid).children()
        if "forkserver" in "".join(child.cmdline())
    )
    server.kill()
    destination = serve("synthetic:", "--incoming", f"unix:{tmp_path}/migrate")
    source.ask("migrate", uri=f"unix:{tmp_path}/migrate")
    assert source.wait_until_over() == "completed"
    destination.wait_for("completed")
    source.ask("quit")
    assert source.wait() == (0, "")


def test_greeted_when_a_source_may_connect(serve: Serve, tmp_path: Path) -> None:
    """Broken: a source that is told to migrate at once would find nobody there."""
    for number in range(5):
        service = serve("synthetic:", "--incoming", f"unix:{tmp_path}/in{number}")
        with socket.socket(socket.AF_UNIX) as source:
            source.connect(f"{tmp_path}/in{number}")
            source.sendall(b"QEVM")
        assert service.wait()[0] == 1


def test_others_do_not_take_the_place_of_the_source(serve: Serve, tmp_path: Path) -> None:
    """Broken: a monitoring system that looks whether a port is open costs the guest its way in."""
    destination = serve("synthetic:", "--incoming", f"unix:{tmp_path}/migrate")
    silent, scanner, browser = (socket.socket(socket.AF_UNIX) for _ in range(3))
    for client in (silent, scanner, browser):
        client.connect(f"{tmp_path}/migrate")
    scanner.close()
    browser.sendall(b"GET / HTTP/1.1\r\n")
    browser.settimeout(PATIENCE)
    with pytest.raises(ConnectionResetError):
        browser.recv(1)
    source = serve("synthetic:1M")
    source.ask("migrate", uri=f"unix:{tmp_path}/migrate")
    assert source.wait_until_over() == "completed"
    destination.wait_for("completed")
    destination.ask("quit")
    status, said = destination.wait()
    assert status == 0
    refused = [line.partition(" was refused: ")[2] for line in said.splitlines()]
    assert sorted(refused) == [
        "it does not begin as it should",
        "it ended before it said what it is",
    ]
    for client in (silent, browser):
        client.close()
