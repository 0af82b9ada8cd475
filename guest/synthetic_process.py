"""The process of a synthetic guest: writes pages at its rate, answers its controller.

It outlives a controller that dies, so that there is always one guest that runs: see `_orphaned`.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .base import GuestError, RamBlock, map_block
from .synthetic_memory import BATCH, PAGE_SIZE, PATTERNS, BadPage, Memory
from .synthetic_options import Options

_STATE = struct.Struct("<QQQQQQQ")
"""Version, whether it runs on, counter, hot pages, dirty rate, seed, pattern.

Then the table as little-endian u32.
"""
_STATE_VERSION = 3

_BEAT = 0.1
_TICK = 0.005
_BACKLOG = 0.1
"""Seconds of writes that are caught up when the machine was too slow; more are left out."""


class Process:
    """The main loop. `incoming`: the guest comes from elsewhere, and runs there until resumed."""

    def __init__(
        self, connection: Connection, memory: Memory, options: Options, incoming: bool
    ) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        self._memory = memory
        self._options = options
        self._rate = options.dirty_rate
        self._hot = options.hot // PAGE_SIZE
        self._seed = options.seed
        self._counter = 0
        self._running = False
        self._speed = 1.0
        self._ours = not incoming
        self._bad: list[BadPage] = []
        self._dies_at: float | None = None
        self._wrote_until = 0.0
        self._next_beat = 0.0
        self._commands: dict[str, Callable[..., Any]] = {
            "pause": self._pause,
            "resume": self._resume,
            "commit": self._commit,
            "throttle": self._set_throttle,
            "save": self._save,
            "load": self._load,
            "counter": lambda: self._counter,
            "verify": lambda: self._bad + self._memory.check_all(),
        }

    def run(self) -> None:
        """Until told to quit, or until orphaned long enough."""
        while self._dies_at is None or time.monotonic() < self._dies_at:
            if self._dies_at is not None:
                time.sleep(_TICK)
            elif self._commanded(self._patience()) and not self._obey():
                return
            self._write_due()
            self._beat()

    def _patience(self) -> float:
        return _TICK if self._running and self._rate else _BEAT

    def _commanded(self, seconds: float) -> bool:
        return self._dies_at is None and bool(self._poll.poll(seconds * 1000))

    def _obey(self) -> bool:
        """Take one command (number, name, arguments) and answer it; False: quit."""
        try:
            number, name, *arguments = self._connection.recv()
            if name == "quit":
                return False
            try:
                answer = self._commands[name](*arguments)
            except GuestError as error:
                answer = error
            send_message(self._connection, (number, answer))
        except (EOFError, OSError):
            self._orphaned()
        return True

    def _orphaned(self) -> None:
        """The controller is dead: run on, unless the guest may run elsewhere by now."""
        self._speed = 1.0
        self._dies_at = time.monotonic() + self._options.orphan
        # Whoever reads what the controller printed waits for the end of it.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        if self._ours and not self._running:
            self._resume()

    def _pause(self) -> None:
        self._running = False

    def _resume(self) -> None:
        self._running = self._ours = True
        self._wrote_until = time.monotonic()

    def _set_throttle(self, percentage: int) -> None:
        self._speed = 1 - percentage / 100

    def _commit(self) -> None:
        self._ours = False

    def _save(self, running: bool = True) -> bytes:
        pattern = PATTERNS.index(self._memory.pattern)
        figures = (running, self._counter, self._hot, self._rate, self._seed, pattern)
        head = _STATE.pack(_STATE_VERSION, *figures)
        return head + self._memory.table.astype("<u4").tobytes()

    def _load(self, state: bytes) -> bool:
        """Whether the guest ran before it was stopped to migrate."""
        pages = len(self._memory.table)
        if len(state) != _STATE.size + 4 * pages:
            raise GuestError(f"synthetic: device state of {len(state)} bytes for {pages} pages")
        version, running, *figures, pattern = _STATE.unpack_from(state)
        if version != _STATE_VERSION or pattern >= len(PATTERNS):
            raise GuestError(f"synthetic: device state has version {version}, pattern {pattern}")
        self._counter, self._hot, self._rate, self._seed = figures
        self._memory.use(PATTERNS[pattern], self._seed)
        self._memory.table[:] = np.frombuffer(state, "<u4", offset=_STATE.size)
        return bool(running)

    def _write_due(self) -> None:
        """The pages that the rate asks for by now; no longer than a tick, or until a command."""
        now = time.monotonic()
        rate = self._rate * self._speed
        if not self._running or not rate:
            return
        self._wrote_until = max(self._wrote_until, now - _BACKLOG)
        due = int((now - self._wrote_until) * rate / PAGE_SIZE)
        while due and time.monotonic() < now + _TICK and not self._commanded(0):
            written = self._write_some(min(due, BATCH))
            self._wrote_until += written * PAGE_SIZE / rate
            due -= written

    def _write_some(self, limit: int) -> int:
        """Check and write the next pages of the hot set; how many."""
        hot = max(1, min(self._hot, len(self._memory.table)))
        start = self._counter % hot
        numbers = np.arange(start, min(start + limit, hot))
        self._bad += self._memory.check(numbers)
        self._memory.write(numbers)
        self._counter += len(numbers)
        return len(numbers)

    def _beat(self) -> None:
        now = time.monotonic()
        if not self._options.heartbeat or now < self._next_beat:
            return
        self._next_beat = now + _BEAT
        temporary = f"{self._options.heartbeat}.new"
        try:
            with open(temporary, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()} {self._counter} {int(self._running)}\n")
            os.replace(temporary, self._options.heartbeat)
        except OSError:
            # Whoever watched took the folder away; the guest must not die of that.
            return


def send_message(connection: Connection, message: object) -> None:
    """As `transport.process.send_message`, and for its reason; that floor is above this one."""
    connection.send_bytes(pickle.dumps(message))


def run(connection: Connection, descriptors: list[int]) -> None:
    """The controller says first which guest it is; then make or expect the memory, and obey.

    `descriptors`: RAM, ROM.
    """
    # Ctrl-C reaches the whole group; the controller decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        options, incoming = connection.recv()
    except EOFError:
        return
    blocks = [RamBlock("", os.fstat(fd).st_size, PAGE_SIZE, fd) for fd in descriptors]
    memory = Memory(map_block(blocks[0]), map_block(blocks[1]), options.seed, options.pattern)
    if not incoming:
        memory.fill(options.zero)
    Process(connection, memory, options, incoming).run()


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    run(Connection(numbers[0]), numbers[1:])
