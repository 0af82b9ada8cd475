"""Wait for what must happen, for as long as a busy machine needs.

Only what never comes takes that long, so a test that passes is no slower for it. Tests about how
soon something comes have limits of their own.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 200.0
"""The time in seconds: more than a machine needs whose processors are all busy with other work."""


def wait_until(condition: Callable[[], object], shown: Callable[[], object] = str) -> None:
    """Wait until the condition holds; `shown` returns what a test that fails here says."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.01)


def wait_until_read(connection: socket.socket) -> None:
    """Wait until the other end of a TCP connection on this machine has read all that was sent."""
    ends = [_as_in_proc(*end) for end in (connection.getpeername(), connection.getsockname())]

    def unread() -> int:
        for line in Path("/proc/net/tcp").read_text().splitlines():
            # number, local and remote address, state, queues to send and to read (proc_net_tcp)
            words = line.split()
            if words[1:3] == ends:
                return int(words[4].partition(":")[2], 16)
        raise AssertionError("the connection is gone")

    wait_until(lambda: not unread())


def _as_in_proc(host: str, port: int) -> str:
    address = int.from_bytes(socket.inet_aton(host), sys.byteorder)
    return f"{address:08X}:{port:04X}"


def stop_process(pid: int) -> None:
    """Stop a process, and wait until none of its threads goes on.

    The signal stops the others only once the thread that takes it has been given a processor.
    """
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_until(lambda: all(_is_stopped(task / "stat") for task in tasks.iterdir()))


def _is_stopped(stat: Path) -> bool:
    # The state follows the name, which may hold anything (proc(5)).
    return stat.read_text().rpartition(")")[2].split()[0] == "T"
