"""Services that are told to end while a guest is on its way to them (law 5)."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
from vmferry.protocol.handover import Word
from vmferry.protocol.return_path import Pong, ReturnPathReader, Shut
from vmferry.protocol.words import ping

from tests.control.serving import Serve, Serving
from tests.patience import PATIENCE, stop_process
from tests.streams import before_ram, of_synthetic


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the stream of a synthetic guest whose source wants an answer and confirms."""
    return before_ram(of_synthetic("1M", tmp_path_factory.mktemp("stream")), ping(Word.HELLO))


def arrive(address: Path, stream: bytes) -> socket.socket:
    """Send the stream to a service, and return the connection once it has promised the guest."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(address))
    connection.sendall(stream)
    wait_for(connection, Shut(0))
    return connection


def wait_for(connection: socket.socket, answer: object) -> None:
    """Read answers up to this one."""
    reader = ReturnPathReader()
    while answer not in reader.feed(connection.recv(1)):
        continue


def terminate(service: Serving) -> None:
    service.process.send_signal(signal.SIGTERM)


def test_guest_goes_back(serve: Serve, tmp_path: Path, stream: bytes) -> None:
    """Broken: a service that ends takes with it a guest that its source is about to give up."""
    service = serve("synthetic:orphan=60", "--incoming", f"unix:{tmp_path}/in")
    with arrive(tmp_path / "in", stream) as connection:
        terminate(service)
        wait_for(connection, Shut(1))
        connection.sendall(ping(Word.ABORT))
        status, said = service.wait()
    assert (status, "kept" in said) == (0, False), said


@pytest.mark.parametrize("closes", [True, False])
def test_guest_of_unknown_fate_is_kept(
    serve: Serve, tmp_path: Path, stream: bytes, closes: bool
) -> None:
    """Broken: a service that ends, or hangs, loses a guest that its source gave up."""
    service = serve("synthetic:orphan=60", "--incoming", f"unix:{tmp_path}/in")
    with arrive(tmp_path / "in", stream) as connection:
        terminate(service)
        wait_for(connection, Shut(1))
        if closes:
            connection.close()
        status, said = service.wait()
    assert (status, "the guest is kept" in said) == (1, True), said
    os.kill(int(said.rpartition("synthetic:pid=")[2]), signal.SIGKILL)


def test_guest_that_arrives_meanwhile_runs_on(serve: Serve, tmp_path: Path, stream: bytes) -> None:
    """Broken: the service ends with status 0, and no guest is anywhere."""
    guest = f"synthetic:orphan=60,heartbeat={tmp_path}/beat"
    service = serve(guest, "--incoming", f"unix:{tmp_path}/in")
    with arrive(tmp_path / "in", stream) as connection:
        pid = int((tmp_path / "beat").read_text().split()[0])
        stop_process(pid)
        connection.sendall(ping(Word.CONFIRM))
        terminate(service)
        while (event := service.qmp.pull_event(wait=PATIENCE)) and event["event"] != "SHUTDOWN":
            continue
        os.kill(pid, signal.SIGCONT)
        wait_for(connection, Pong(Word.CONFIRM))
        status, said = service.wait()
    assert (status, "left to itself" in said) == (1, True), said
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGKILL)
