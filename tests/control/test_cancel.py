"""Cancelled migrations: at any moment, promptly, and with a source that can go on."""

from __future__ import annotations

import os
import random
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from qemu.qmp.error import QMPError

from tests.control.serving import Serve, Serving

PROMPT = 30.0
"""Seconds, on a busy machine."""


def test_cancel_at_any_moment(serve: Serve, tmp_path: Path) -> None:
    """Broken (law 5): a cancelled migration would cost the guest, or be the service's last."""
    source = serve("synthetic:32M,dirty-rate=8M")
    source.ask("migrate-set-parameters", max_bandwidth=32 << 20)
    moments = random.Random(5)
    ends = []
    for number in range(20):
        destination = None
        uri = "exec:cat > /dev/null"
        if number % 5 == 4:
            uri = f"unix:{tmp_path}/to{number}"
            destination = serve("synthetic:", "--incoming", uri)
        source.ask("migrate", uri=uri)
        time.sleep(moments.uniform(0, 0.8))
        source.ask("migrate_cancel")
        ends.append(source.wait_until_over())
        if ends[-1] == "completed":
            # Too late: it stands still here, until somebody says so.
            assert source.run_state() == "postmigrate"
            source.ask("cont")
        elif destination is not None:
            assert ended(destination)
        assert source.run_state() == "running"
    assert ends.count("cancelled") > 10, ends
    destination = serve("synthetic:", "--incoming", f"unix:{tmp_path}/last")
    source.ask("migrate", uri=f"unix:{tmp_path}/last")
    assert source.wait_until_over() == "completed"
    destination.wait_for("completed")
    assert (source.run_state(), destination.run_state()) == ("postmigrate", "running")


def ended(destination: Serving) -> bool:
    """Return whether the source's end ended the destination.

    A source that sent nothing, or did not connect yet, leaves its place to the next one: the
    destination still waits then, and is asked to end.
    """
    asked = False
    with suppress(EOFError, QMPError, OSError):
        if destination.wait_for("setup", "failed")["status"] == "setup":
            asked = True
            destination.ask("quit")
    status, _ = destination.wait()
    return status == 1 or (asked and status == 0)


def nobody_takes(scheme: str, folder: Path, stack: ExitStack) -> str:
    """Return a URI that a migration waits for without end, in one way or the other."""
    if scheme == "exec":
        return "exec:sleep 1000"
    path = f"{folder}/nobody"
    if scheme == "file":
        os.mkfifo(path)
        return f"file:{path}"
    family = socket.AF_INET if scheme == "tcp" else socket.AF_UNIX
    listening = stack.enter_context(socket.socket(family))
    listening.bind(("127.0.0.1", 0) if scheme == "tcp" else path)
    # Who fills the queue is never accepted, and the next one does not get in.
    listening.listen(0)
    stack.enter_context(socket.socket(family)).connect(listening.getsockname())
    return f"tcp:127.0.0.1:{listening.getsockname()[1]}" if scheme == "tcp" else f"unix:{path}"


@pytest.mark.parametrize("scheme", ["tcp", "unix", "file", "exec"])
def test_cancel_while_nobody_takes_it(serve: Serve, tmp_path: Path, scheme: str) -> None:
    """Broken: who mistook an address would wait for its timeout, with the service it is from."""
    source = serve("synthetic:16M")
    with ExitStack() as stack:
        uri = nobody_takes(scheme, tmp_path, stack)
        source.ask("migrate", uri=uri)
        if scheme == "exec":
            source.wait_for("active")
        time.sleep(0.2)
        assert source.ask("query-migrate")["status"] == ("active" if scheme == "exec" else "setup")
        started = time.monotonic()
        source.ask("migrate_cancel")
        assert source.wait_until_over() == "cancelled"
        assert time.monotonic() - started < PROMPT
        assert source.run_state() == "running"
        source.ask("migrate", uri=uri)
        started = time.monotonic()
        source.ask("quit")
        assert source.wait() == (0, "")
        assert time.monotonic() - started < PROMPT
