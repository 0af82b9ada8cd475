"""A host that is gone, and a process that only stands still, over a real link."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.system.link import FAR, Link, Quality

pytestmark = pytest.mark.root

PORT = 7001
LISTENS = f"""
import socket, time
server = socket.create_server(("{FAR}", {PORT}))
print("listening", flush=True)
connection, _ = server.accept()
time.sleep(60)
"""
SENDS = f"""
import socket, sys, time
from vmferry.transport.silence import silence
sock = socket.create_connection(("{FAR}", {PORT}), 10)
print(silence(sock), flush=True)
sock.settimeout(1)
try:
    while True:
        sock.send(bytes(1 << 16))
except TimeoutError:
    pass
for _ in sys.stdin:
    print(silence(sock), flush=True)
"""


class Sending:
    """A process that sends to one that does not read, and says how silent that one's host is."""

    def __init__(self, link: Link) -> None:
        self._there = subprocess.Popen(
            [*link.far, sys.executable, "-c", LISTENS], stdout=subprocess.PIPE, text=True
        )
        assert self._there.stdout is not None
        assert self._there.stdout.readline() == "listening\n"
        self._here = subprocess.Popen(
            [*link.near, sys.executable, "-c", SENDS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == 0

    def _answer(self) -> float:
        assert self._here.stdout is not None
        return float(self._here.stdout.readline())

    def silence(self) -> float:
        assert self._here.stdin is not None
        self._here.stdin.write("\n")
        self._here.stdin.flush()
        return self._answer()

    def close(self) -> None:
        for process in (self._here, self._there):
            process.kill()
            process.communicate()


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link(Quality(rate=50 << 20))
    yield made
    made.close()


def test_reader_that_stands_still_is_not_gone(link: Link) -> None:
    """Broken: a destination that is stopped for a while would cost its migration."""
    sending = Sending(link)
    try:
        for _ in range(30):
            assert sending.silence() == 0
            time.sleep(0.1)
    finally:
        sending.close()


def test_host_that_is_gone(link: Link) -> None:
    """Broken: a source would wait a quarter of an hour for a destination that lost its power."""
    sending = Sending(link)
    try:
        link.cut()
        # The window had no room left, so only questions for room go unanswered.
        while sending.silence() < 2:
            time.sleep(0.1)
    finally:
        sending.close()
