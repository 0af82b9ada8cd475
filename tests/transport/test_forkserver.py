"""The process that children are forked from: its death is nobody else's, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
from vmferry.transport.crew import Crew, CrewError
from vmferry.transport.process import StartError, send_message, start_child, stop_children
from vmferry.transport.shared import SharedFd

from tests.patience import PATIENCE, wait_until

"""Seconds that anything may take on a busy machine."""


def echo(connection: Connection) -> None:
    """Answer with each message that arrives."""
    while True:
        send_message(connection, connection.recv())


def write_to(connection: Connection, shared: list[SharedFd]) -> None:
    """Write this child's number to each descriptor."""
    for number, target in enumerate(shared):
        os.write(target.fileno(), bytes([number % 256]))
    send_message(connection, "written")
    connection.recv()


def sleep_on(connection: Connection) -> None:
    """Sleep, and do not look at the connection."""
    send_message(connection, "asleep")
    time.sleep(1000)


def server_of(pid: int) -> psutil.Process:
    """Return the process that this child was forked from."""
    parent = psutil.Process(pid).parent()
    assert parent is not None
    assert "forkserver" in "".join(parent.cmdline())
    return parent


def test_its_death_is_not_its_children_s(crew: Crew) -> None:
    """Broken: the destination's children look dead as it answers, and no guest runs anywhere."""
    child = crew.start("child", echo, ())
    server = server_of(child.pid)
    server.kill()
    server.wait(PATIENCE)
    send_message(child.connection, "alive")
    assert crew.wait_for(str, PATIENCE) == "alive"
    assert not child.wait(0)
    another = crew.start("another", echo, ())
    assert server_of(another.pid) != server
    stop_children([child])
    crew._children.remove(child)


def test_death_as_a_child_starts(crew: Crew) -> None:
    """Broken: a traceback, or a coordinator that waits for ever for a child that never was."""
    first = crew.start("first", echo, ())
    server = server_of(first.pid)
    server.suspend()
    errors: list[StartError] = []

    def start() -> None:
        try:
            start_child("second", echo, ())
        except StartError as error:
            errors.append(error)

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    starting.join(0.1)
    server.kill()
    starting.join(PATIENCE)
    assert [str(error) for error in errors] == [
        "process second died as it started, or the process that forks it did"
    ]
    crew.start("third", echo, ())


def test_cancel_while_it_is_stopped() -> None:
    """Broken: Ctrl-C does nothing until somebody continues a process that nobody knows of."""
    wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
    cancelled: list[bool] = []

    def check() -> None:
        if cancelled:
            raise InterruptedError

    crew = Crew(wake_fd, check)
    server = server_of(crew.start("first", echo, ()).pid)
    server.suspend()
    crew.on_tick = lambda: cancelled.append(True)
    with pytest.raises(InterruptedError):
        crew.start("second", echo, ())
    server.resume()
    crew.stop()
    os.close(wake_fd)
    # The child that nobody waits for any more is gone, too.
    wait_until(lambda: not server.children())


@pytest.mark.parametrize("count", [1, 300])
def test_descriptors_arrive_in_order(crew: Crew, count: int) -> None:
    """Broken: a worker takes another one's ring, or 64 workers cannot be started."""
    pipes = [os.pipe() for _ in range(count)]
    crew.start("child", write_to, ([SharedFd(writing) for _, writing in pipes],))
    assert crew.wait_for(str, PATIENCE) == "written"
    assert [os.read(reading, 2) for reading, _ in pipes] == [bytes([n % 256]) for n in range(count)]
    for fds in pipes:
        for fd in fds:
            os.close(fd)


def test_child_with_children_ends_with_its_parent() -> None:
    """Broken: the destination of a demo that was killed would wait for its source for ever."""
    child = start_child("child", sleep_on, (), parent=True)
    assert child.connection.recv() == "asleep"
    child.connection.close()
    assert child.wait(PATIENCE)
    stop_children([child])


def test_signals_are_the_coordinator_s(crew: Crew) -> None:
    """Broken: whoever ends a whole service or terminal would end the children before the guest."""
    child = crew.start("child", echo, ())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child.pid, number)
        server_of(child.pid).send_signal(number)
    send_message(child.connection, "alive")
    assert crew.wait_for(str, PATIENCE) == "alive"


def test_no_server_no_child(monkeypatch: pytest.MonkeyPatch, crew: Crew) -> None:
    """Broken: a traceback where the system has no room for another process."""
    server = server_of(crew.start("child", echo, ()).pid)
    server.kill()
    server.wait(PATIENCE)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(CrewError, match="no process can be started: No such file or directory"):
        crew.start("second", echo, ())


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path) -> None:
    """Broken: each killed command leaves a folder, until no more fit."""
    command = [sys.executable, "-m", "vmferry.tools", "receive", "tcp:127.0.0.1:0"]
    running = subprocess.Popen(
        [*command, "--guest", "synthetic:"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    assert running.stderr is not None
    assert running.stderr.readline().startswith(b"listening")
    processes = [*psutil.Process(running.pid).children(recursive=True)]
    assert len(processes) > 1
    running.kill()
    for process in processes:
        if process.is_running():
            process.kill()
    running.communicate()
    assert list(tmp_path.iterdir()) == []
