"""The process of a synthetic guest: write pages at its rate, and answer its controller.

The process carries out its own handovers, and outlives a controller that dies, so that one guest
always runs: `_orphaned` and `_settle` decide what happens to it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum, auto
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..protocol.handover import Destination
from ..transport.process import receive_fd, send_fd, send_message
from .errors import GuestError
from .handing_in import DestinationJob, hand_in
from .handing_out import SourceJob, hand_out
from .mapping import map_block
from .parts import RamBlock
from .synthetic_disks import SyntheticDisks
from .synthetic_door import Door
from .synthetic_memory import BATCH, PAGE_SIZE, BadPage, Memory
from .synthetic_options import Options
from .synthetic_state import State, pack, unpack
from .tracking.marks import mark_writes

_BEAT = 0.1
_TICK = 0.005
_BACKLOG = 0.1
"""Longest time, in seconds, of delayed writes that are caught up; older ones are skipped."""


class Hold(Enum):
    """The state that says whether the guest in this process may run."""

    OURS = auto()
    """The guest runs here, or is paused and may run here at any time."""
    INCOMING = auto()
    """The guest is not whole, or not promised to anybody."""
    GIVEN = auto()
    """The guest was given up: it runs elsewhere."""
    KEPT = auto()
    """The guest is whole and paused, and a user decides whether it runs here."""


class Process:
    """The main loop; an `incoming` guest does not run here until it is resumed."""

    def __init__(
        self,
        connection: Connection,
        blocks: Sequence[npt.NDArray[np.uint8]],
        memory: Memory,
        options: Options,
        incoming: bool,
    ) -> None:
        self._connection = connection
        self._blocks = blocks
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        self._memory = memory
        self._disks = SyntheticDisks((), (), 0, options.seed)
        self._options = options
        self._rate = options.dirty_rate
        self._hot = options.hot // PAGE_SIZE
        self._seed = options.seed
        self._counter = 0
        self._running = False
        self._speed = 1.0
        self._hold = Hold.INCOMING if incoming else Hold.OURS
        self._runs_on = True
        self._handing = False
        self._orphan = False
        self._door: Door | None = None
        self._link: socket.socket | None = None
        """The connection to the source while a handover from there is under way."""
        self._wanted = False
        """True once a user has asked for the guest that waited for a word."""
        self._bad: list[BadPage] = []
        self._dies_at: float | None = None
        self._wrote_until = 0.0
        self._next_beat = 0.0
        self._commands: dict[str, Callable[..., Any]] = {
            "pause": self._pause,
            "resume": self.resume,
            "commit": self.commit,
            "hand out": self._hand_out,
            "hand in": self._hand_in,
            "throttle": self._set_throttle,
            "mark writes": self._mark_writes,
            "addresses": lambda: tuple(block.ctypes.data for block in self._blocks),
            "disks": self._take_disks,
            "mark disk writes": self._mark_disk_writes,
            "save": self._save,
            "save disks": self._save_disks,
            "load": self._load,
            "load disks": self._load_disks,
            "counter": lambda: self._counter,
            "verify": lambda: self._bad + self._memory.check_all() + self._disks.check_all(),
        }

    def run(self) -> None:
        """Run until the controller commands to quit, or until nobody needs the guest any more."""
        while self._dies_at is None or time.monotonic() < self._dies_at:
            if self._orphan:
                time.sleep(_TICK)
                self._settle()
            elif self._commanded(self._patience()) and not self._obey():
                return
            self._write_due()
            if self._running:
                self._disks.write_due(self._speed)
            self._beat()

    def _patience(self) -> float:
        return _TICK if self._running and (self._rate or self._disks.rate) else _BEAT

    def _commanded(self, seconds: float) -> bool:
        return not self._orphan and bool(self._poll.poll(seconds * 1000))

    def _obey(self) -> bool:
        """Take one command (number, name, arguments) and answer it; return False to quit."""
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
        """Continue without the controller, which is dead."""
        self._orphan = True
        self._speed = 1.0
        # A reader of the controller's output waits for its end, so stderr must not keep it open.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    def _settle(self) -> None:
        """Let an orphan run if it belongs here alone; end it once nobody can need it any more."""
        if self._handing:
            self._let_a_user_decide()
            return
        if self._hold is Hold.OURS and not self._running:
            self.resume()
        if self._hold is Hold.KEPT and self._door is None:
            self._door = Door()
        if self._door is not None and self._may_open(self._door):
            self.resume()
            self._door.open()
            self._door, self._dies_at = None, None
        if self._dies_at is None:
            needed = self._hold in (Hold.OURS, Hold.KEPT)
            self._dies_at = time.monotonic() + (self._options.orphan if needed else 0)

    def _may_open(self, door: Door) -> bool:
        """Return whether the guest runs here, because of the source's word or a user's."""
        wanted = self._wanted or door.knocked()
        return self._hold is Hold.OURS or (self._hold is Hold.KEPT and wanted)

    def _let_a_user_decide(self) -> None:
        """Let a user end the wait for a word, which nobody else can end any more.

        The link is broken first, so the word cannot arrive later, and the source learns of it.
        """
        link = self._link
        if link is None:
            return
        if self._door is None:
            self._door = Door()
        if self._door.knocked():
            self._wanted = True
            # It may have ended by itself meanwhile.
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _pause(self) -> None:
        self._running = False

    def resume(self) -> None:
        """Run the guest here, and nowhere else."""
        self._wrote_until = time.monotonic()
        self._disks.begin()
        self._running, self._hold = True, Hold.OURS

    def commit(self) -> None:
        """Give the guest up: it does not run here again by itself."""
        self._hold = Hold.GIVEN

    def complete(self, *, running: bool) -> None:
        """Take the guest over: it is whole, and its source has given it up."""
        if running and self._runs_on:
            self.resume()
        else:
            self._hold = Hold.KEPT

    def _hand_out(self, job: SourceJob) -> None:
        self._begin(lambda fd, control: hand_out(fd, job, self, control))

    def _hand_in(self, job: DestinationJob) -> None:
        def take_over(fd: int, control: Connection) -> None:
            with _shared_link(fd) as self._link:
                if hand_in(fd, job, self, control).state is Destination.KEPT:
                    self._hold = Hold.KEPT
            self._link = None

        self._begin(take_over)

    def _begin(self, hand_over: Callable[[int, Connection], object]) -> None:
        """Carry out the handover beside the main loop, which goes on to beat and to obey."""
        fd, control = receive_fd(self._connection), Connection(receive_fd(self._connection))

        def carry_out() -> None:
            try:
                hand_over(fd, control)
            finally:
                control.close()
                self._handing = False

        self._handing = True
        threading.Thread(target=carry_out, daemon=True).start()

    def _set_throttle(self, percentage: int) -> None:
        self._speed = 1 - percentage / 100

    def _mark_writes(self) -> tuple[int, ...]:
        """Mark the writes of this process; the controller gets, and keeps, the descriptors."""
        with Connection(receive_fd(self._connection)) as controller:
            marks = mark_writes(self._blocks)
            send_fd(controller, marks.userfaultfd)
            send_fd(controller, marks.pagemap)
        marks.close()
        return marks.addresses

    def _take_disks(self, sizes: tuple[int, ...]) -> None:
        """Take the images of the disks, which stay locked for as long as this process lives."""
        fds = [receive_fd(self._connection) for _ in sizes]
        self._disks = SyntheticDisks(fds, sizes, self._options.disk_rate, self._seed)

    def _mark_disk_writes(self) -> None:
        self._disks.mark(receive_fd(self._connection))

    def _save_disks(self) -> bytes:
        return self._disks.save()

    def _load_disks(self, state: bytes) -> None:
        self._disks.load(state)

    def _save(self, running: bool = True) -> bytes:
        memory = self._memory
        figures = (self._counter, self._hot, self._rate, self._seed, memory.pattern)
        return pack(State(running, *figures, memory.table))

    def _load(self, state: bytes) -> bool:
        """Load the device state; return whether the guest ran before it was stopped to migrate."""
        loaded = unpack(state, len(self._memory.table))
        self._counter, self._hot = loaded.counter, loaded.hot
        self._rate, self._seed = loaded.rate, loaded.seed
        self._memory.use(loaded.pattern, loaded.seed)
        self._memory.table[:] = loaded.table
        self._runs_on = loaded.runs_on
        return self._runs_on

    def _write_due(self) -> None:
        """Write the pages that are due by now, until a tick has passed or a command arrives."""
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
        """Check and write the next pages of the hot set; return their number."""
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
            # Whoever watched has removed the folder; the guest must not die of that.
            return


@contextmanager
def _shared_link(fd: int) -> Iterator[socket.socket | None]:
    """Share the connection behind `fd` for a while; None if it is a pipe or a file."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        yield None
        return
    with socket.socket(fileno=os.dup(fd)) as link:
        yield link


def run(connection: Connection, descriptors: list[int]) -> None:
    """Receive the options of the guest from the controller, set up its memory, and run it.

    `descriptors` has RAM and ROM.
    """
    # Ctrl-C reaches the whole group; the controller decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        _, name, *arguments = connection.recv()
    except (EOFError, ConnectionError):
        # The controller has died already.
        return
    if name == "quit":
        # A signal ended the controller before it had sent the options.
        return
    options, incoming = arguments
    blocks = [map_block(RamBlock("", os.fstat(fd).st_size, PAGE_SIZE, fd)) for fd in descriptors]
    memory = Memory(blocks[0], blocks[1], options.seed, options.pattern)
    if not incoming:
        memory.fill(options.zero)
    Process(connection, blocks, memory, options, incoming).run()


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    run(Connection(numbers[0]), numbers[1:])
