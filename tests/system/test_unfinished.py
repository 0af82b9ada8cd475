"""Test what stays of a `dir:` guest when the command that receives it is killed by SIGKILL.

Before an answer can have left nothing stays; from then on nothing is removed (law 5).
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from vmferry.protocol.handover import Word
from vmferry.protocol.return_path import Pong, ReturnPathReader, Shut
from vmferry.protocol.words import ping, word_on_wire

from tests.streams import before_ram, of_synthetic

WITHIN = 5.0
"""Seconds from the death of the command to the end of all that was its own."""


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the stream of a synthetic guest whose source waits for an answer and confirms."""
    return before_ram(of_synthetic("4M", tmp_path_factory.mktemp("stream")), ping(Word.HELLO))


class Receiving:
    """`vmferry receive` into a folder, and a source of which the test is the other end."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.guest = folder / "some" / "where" / "guest"
        self._receive = subprocess.Popen(
            [
                *(sys.executable, "-m", "vmferry.tools", "receive", "tcp:127.0.0.1:0"),
                *("--workers", str(workers), "--guest", f"dir:{self.guest}"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._receive.stderr is not None
        port = int(self._receive.stderr.readline().rpartition(":")[2])
        self.source = socket.create_connection(("127.0.0.1", port))

    def kill(self) -> None:
        """Kill the command, and wait until all of its processes are gone."""
        family = psutil.Process(self._receive.pid).children(recursive=True)
        self._receive.kill()
        self._receive.wait()
        self._family = family

    def all_gone(self) -> bool:
        """Return whether every process of the command has ended."""
        _, alive = psutil.wait_procs(self._family, WITHIN)
        return alive == []

    def close(self) -> None:
        self.source.close()
        self._receive.kill()
        self._receive.communicate()


@pytest.fixture(params=[0, 1], ids=["0 workers", "1 worker"])
def receiving(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Receiving]:
    made = Receiving(tmp_path, request.param)
    yield made
    made.close()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether the condition holds within so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("part", [0.1, 0.9])
def test_killed_in_the_middle_of_ram(receiving: Receiving, stream: bytes, part: float) -> None:
    """Broken: half a guest would stay, and be in the way of the next migration to the folder."""
    receiving.source.sendall(stream[: int(part * len(stream))])
    ram = receiving.guest / "ram"
    assert wait_until(lambda: any(f.stat().st_blocks for f in ram.glob("*")), 20)
    receiving.kill()
    top = receiving.guest.parents[1]
    assert wait_until(lambda: not top.exists(), WITHIN), sorted(top.rglob("*"))
    assert receiving.all_gone()


@pytest.mark.parametrize("confirms", [False, True])
def test_killed_behind_the_answer(receiving: Receiving, stream: bytes, confirms: bool) -> None:
    """Broken: a guest that its source gives up would be removed."""
    receiving.source.sendall(stream)
    reader, answers = ReturnPathReader(), list[object]()
    while Shut(0) not in answers:
        answers += reader.feed(receiving.source.recv(100))
    receiving.kill()
    if confirms:
        receiving.source.sendall(word_on_wire(Word.CONFIRM, framed=False))
        while Pong(Word.CONFIRM) not in answers:
            answers += reader.feed(receiving.source.recv(100))
    receiving.source.close()
    assert receiving.all_gone()
    names = {path.name for path in receiving.guest.iterdir()}
    assert names == {"ram", "devices", "guest.json" if confirms else "guest.json.new"}
