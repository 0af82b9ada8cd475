"""The process of a synthetic guest: writes pages at its rate, answers its controller.

A page's first words are its number + 1, the sequence number of its last write, and the checksum of
the rest. Every sixteenth write of a page makes it all zero.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from .base import GuestError, RamBlock, map_block
from .zero import zero_mask

PAGE_SIZE = 4096
_WORDS = PAGE_SIZE // 8
_HEAD = 3
_BATCH = 64
_ZERO_EVERY = 16
_POOL_PAGES = 256
_BEAT = 0.1
_TICK = 0.005

_STATE = struct.Struct("<QQQd")
"""Counter, hot pages, dirty rate, seed; the u32 table follows."""


class BadPage(NamedTuple):
    """A page that is not what the table says: torn, stale, foreign or not zero."""

    block: str
    page: int
    reason: str


class Memory:
    """RAM, the table, and how pages are written and checked."""

    def __init__(self, ram: npt.NDArray[np.uint8], rom: npt.NDArray[np.uint8], seed: int) -> None:
        self.words = ram.view(np.uint64).reshape(-1, _WORDS)
        self.rom = rom
        self.table = np.zeros(len(self.words), np.uint32)
        random = np.random.default_rng(seed)
        self._random = random
        self._pool = random.integers(0, 1 << 63, (_POOL_PAGES, _WORDS), np.uint64)
        self.rom_image = np.random.default_rng(7).integers(0, 256, len(rom), np.uint8)

    def fill(self, zero: float) -> None:
        """Write every page once, but for a fraction that stays zero."""
        self.rom[:] = self.rom_image
        whole = len(self.table)
        written = np.sort(self._random.permutation(whole)[: round(whole * (1 - zero))])
        for start in range(0, len(written), _BATCH):
            self.write(written[start : start + _BATCH])

    def write(self, numbers: npt.NDArray[np.intp]) -> None:
        """Write these pages anew; no number comes twice."""
        sequence = self.table[numbers] + np.uint32(1)
        pages = self._pool[sequence.astype(np.intp) * 7 % _POOL_PAGES]
        pages[:, 0] = numbers + 1
        pages[:, 1] = sequence
        pages[:, 2] = self._checksums(pages)
        pages[sequence % _ZERO_EVERY == 0] = 0
        self.words[numbers] = pages
        self.table[numbers] = sequence

    @staticmethod
    def _checksums(pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        rest = pages[:, _HEAD:]
        return np.fromiter((xxh3_64_intdigest(page) for page in rest), np.uint64, len(pages))

    def check(self, numbers: npt.NDArray[np.intp]) -> list[BadPage]:
        """Which of these pages are not as the table says."""
        pages, expected = self.words[numbers], self.table[numbers]
        should_be_zero = expected % _ZERO_EVERY == 0
        bad: list[BadPage] = []
        wrong = should_be_zero & ~zero_mask(pages.view(np.uint8))
        bad += [BadPage("synthetic.ram", int(n), "not zero") for n in numbers[wrong]]
        for reason, mask in (
            ("torn", self._checksums(pages) != pages[:, 2]),
            ("stale", pages[:, 1] != expected),
            ("foreign", pages[:, 0] != numbers.astype(np.uint64) + np.uint64(1)),
        ):
            found = numbers[mask & ~should_be_zero]
            bad += [BadPage("synthetic.ram", int(n), reason) for n in found]
        return bad

    def check_all(self) -> list[BadPage]:
        """Every page of RAM and ROM."""
        bad = []
        for start in range(0, len(self.table), 4096):
            bad += self.check(np.arange(start, min(start + 4096, len(self.table))))
        wrong = (self.rom != self.rom_image).reshape(-1, PAGE_SIZE).any(axis=1)
        return bad + [BadPage("synthetic.rom", int(n), "torn") for n in np.flatnonzero(wrong)]


class Process:
    """The main loop."""

    def __init__(self, connection: Connection, memory: Memory, settings: dict[str, Any]) -> None:
        self._connection = connection
        self._memory = memory
        self._rate = settings["dirty_rate"]
        self._hot = (settings["hot"] or settings["size"] // 10) // PAGE_SIZE
        self._seed = settings["seed"]
        self._heartbeat = settings["heartbeat"]
        self._orphan = settings["orphan"]
        self._counter = 0
        self._running = False
        self._committed = False
        self._bad: list[BadPage] = []
        self._dies_at: float | None = None
        self._wrote_until = 0.0
        self._next_beat = 0.0
        self._position = 0

    def load(self, state: bytes) -> None:
        """Take over from the other side. Raises GuestError."""
        table = np.frombuffer(state[_STATE.size :], np.uint32)
        if len(state) < _STATE.size or len(table) != len(self._memory.table):
            raise GuestError("synthetic: the device state does not fit the RAM")
        self._counter, self._hot, self._rate, _ = _STATE.unpack_from(state)
        self._memory.table[:] = table

    def save(self) -> bytes:
        """The device state."""
        head = _STATE.pack(self._counter, self._hot, self._rate, self._seed)
        return head + self._memory.table.tobytes()

    def run(self) -> None:
        """Until told to quit, or until orphaned long enough."""
        while self._dies_at is None or time.monotonic() < self._dies_at:
            if self._dies_at is not None:
                time.sleep(_TICK)
            elif self._connection.poll(_TICK) and not self._obey():
                return
            if self._running:
                self._write_due()
            self._beat()

    def _obey(self) -> bool:
        try:
            command = self._connection.recv()
        except (EOFError, OSError):
            self._orphaned()
            return True
        if command == "quit":
            return False
        answer: Any = True
        if command in ("pause", "resume"):
            self._running = command == "resume"
            self._wrote_until = time.monotonic()
        elif command == "commit":
            self._committed = True
        elif command == "save":
            answer = self.save()
        elif command == "counter":
            answer = self._counter
        elif command == "verify":
            answer = self._bad + self._memory.check_all()
        try:
            self._connection.send(answer)
        except OSError:
            self._orphaned()
        return True

    def _orphaned(self) -> None:
        """The controller is dead: run on, unless the guest may run elsewhere by now."""
        self._dies_at = time.monotonic() + self._orphan
        if not self._running and not self._committed:
            self._running = True
            self._wrote_until = time.monotonic()

    def _write_due(self) -> None:
        """The pages that the rate asks for since the last time, a bounded number of them."""
        now = time.monotonic()
        due = int((now - self._wrote_until) * self._rate / PAGE_SIZE)
        if not due:
            return
        self._wrote_until += due * PAGE_SIZE / self._rate
        hot = min(self._hot, len(self._memory.table))
        for _ in range(0, min(due, 32 * _BATCH), _BATCH):
            start = self._position % hot
            numbers = np.arange(start, min(start + _BATCH, hot))
            self._bad += self._memory.check(numbers)
            self._memory.write(numbers)
            self._position += len(numbers)
            self._counter += len(numbers)

    def _beat(self) -> None:
        now = time.monotonic()
        if not self._heartbeat or now < self._next_beat:
            return
        self._next_beat = now + _BEAT
        temporary = f"{self._heartbeat}.new"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()} {self._counter} {int(self._running)}\n")
        os.replace(temporary, self._heartbeat)


def run(
    connection: Connection, descriptors: list[int], settings: dict[str, Any], state: bytes | None
) -> None:
    """Process entry; `state` None: a new guest, else one that arrived."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ram, rom = (
        map_block(RamBlock("", os.fstat(fd).st_size, PAGE_SIZE, fd)) for fd in descriptors
    )
    memory = Memory(ram, rom, settings["seed"])
    process = Process(connection, memory, settings)
    try:
        if state is None:
            memory.fill(settings["zero"])
        else:
            process.load(state)
    except GuestError as error:
        connection.send(error)
        return
    connection.send(True)
    process.run()
