"""`synthetic:SIZE[,option=value...]`: a guest that is a process writing its own memory.

Every page that the process writes holds the page's number, the sequence number of the write, and a
checksum. The process keeps the sequence numbers in a table, which is its device state. A page that
arrives torn, stale, or in the wrong place is therefore found at the destination.
"""

from __future__ import annotations

import atexit
import itertools
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_hexdigest

from ..protocol.handover import Destination, Source
from ..transport.process import receive_fd, send_fd, send_message
from .base import Guest
from .disks.image import Disk
from .disks.marks import DiskMarks
from .errors import GuestError
from .handing import Outcome
from .handing_in import DestinationJob
from .handing_out import SourceJob
from .mapping import map_block, populate_present
from .one_section import few_sections, payloads_of
from .parts import BlockLayout, DeviceState, Machine, RamBlock
from .sizes import format_size
from .synthetic_door import knock
from .synthetic_images import SyntheticImages
from .synthetic_launch import launch, make_memory
from .synthetic_memory import PAGE_SIZE, RAM_NAME, ROM_NAME, ROM_SIZE, BadPage
from .synthetic_options import Options, parse_options
from .tracking.digests import page_digests
from .tracking.marks import WriteMarks
from .tracking.process_memory import ProcessMemory

DEVICE_NAME = "synthetic"
DISKS_NAME = "synthetic-disks"
VERSION = 1
_QUIT_TIMEOUT = 5.0
_released: list[subprocess.Popen[bytes]] = []
"""Processes of guests that outlive this process."""


class SyntheticGuest(Guest):
    """The controller's side of a synthetic guest; the guest itself is in `synthetic_process`.

    With a size, the guest runs at once, unless it is `incoming`: then it is empty until `prepare`,
    which takes a guest of this size only. Without a size it is incoming, and takes any.
    """

    def __init__(self, options: Options, *, incoming: bool = False) -> None:
        super().__init__()
        self._options = options
        self._expected = options.size if incoming else 0
        self._blocks: tuple[RamBlock, ...] = ()
        self._images = SyntheticImages(options.disks)
        self._beforehand: tuple[RamBlock, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd: int | None = None
        self._connection: Connection | None = None
        self._numbers = itertools.count(1)
        self._running = False
        self._runs_on = True
        # A migration and a command that stops the guest may call at the same time.
        self._lock = threading.RLock()
        if options.prealloc and self._expected:
            self._beforehand = make_memory(self._expected, existing=True)
        if options.size and not incoming:
            self._images.open()
            self._start(options.size, incoming=False)
            self._give_disks()
            self._command("resume")
            self._running = True

    @classmethod
    def parse(cls, text: str, incoming: bool = False) -> SyntheticGuest:
        """Return the guest for the text behind `synthetic:`. Raises GuestError."""
        return cls(parse_options(text), incoming=incoming)

    def _memory(self, size: int) -> tuple[RamBlock, ...]:
        return make_memory(size, existing=self._options.prealloc)

    def _start(self, size: int, *, incoming: bool) -> None:
        """Create memory and the process, paused. Raises GuestError, leaving nothing behind."""
        # A controller that ends in order leaves no guest behind.
        atexit.register(self.close)
        try:
            self._blocks, self._beforehand = self._beforehand or self._memory(size), ()
            self._connection, theirs = Pipe()
            fds = (theirs.fileno(), *(block.fd for block in self._blocks))
            self._process = launch(fds)
            self._pidfd = os.pidfd_open(self._process.pid)
            theirs.close()
            send_message(self._connection, (0, "begin", self._options, incoming))
        except OSError as error:
            self.close()
            raise GuestError(f"synthetic: {error.strerror}") from error

    def _give_disks(self) -> None:
        """Give the images to the guest's process, which writes them."""
        disks = self._images.disks
        if disks:
            self._command("disks", self._images.sizes, fds=[disk.fd for disk in disks])

    def _command(self, name: str, *arguments: Any, fds: Sequence[int] = ()) -> Any:
        with self._lock:
            answer = self._answer(self._to_process, name, arguments, fds)
        if isinstance(answer, GuestError):
            raise answer
        return answer

    @property
    def _to_process(self) -> Connection:
        if self._connection is None:
            raise GuestError("synthetic: no guest here yet; give it a size, or receive one")
        return self._connection

    def _answer(
        self, connection: Connection, name: str, arguments: tuple[Any, ...], fds: Sequence[int]
    ) -> Any:
        with self._living():
            number = self._send(connection, name, arguments, fds)
            answered = 0
            while answered != number:
                # This answers an older command, whose caller did not wait for it.
                answered, answer = connection.recv()
        return answer

    def _send(
        self,
        connection: Connection,
        name: str,
        arguments: tuple[Any, ...],
        fds: Sequence[int] = (),
    ) -> int:
        """Send a command, and return the number that its answer will have."""
        number = next(self._numbers)
        send_message(connection, (number, name, *arguments))
        for fd in fds:
            send_fd(connection, fd)
        return number

    @contextmanager
    def _living(self) -> Iterator[None]:
        """Raise GuestError if the connection to the guest's process ends."""
        try:
            yield
        except (EOFError, OSError) as error:
            self._running = False
            raise GuestError("synthetic: the guest process died") from error

    @property
    def machine(self) -> Machine:
        """Return the machine `synthetic-1`."""
        return Machine("synthetic-1", PAGE_SIZE)

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """Return the RAM block, which is written, and a ROM block, which is not."""
        return self._blocks

    @property
    def disks(self) -> tuple[Disk, ...]:
        """Return the disks, one for each image among the options."""
        return self._images.disks

    @property
    def running(self) -> bool:
        """Return whether the process writes."""
        return self._running

    @property
    def death_fd(self) -> int | None:
        """Return the pidfd of the guest's process, or None."""
        return self._pidfd

    @property
    def pid(self) -> int:
        """Return the id of the guest's process. Raises GuestError if there is none."""
        if self._process is None:
            raise GuestError("synthetic: no guest here yet")
        return self._process.pid

    def pause(self) -> None:
        """Stop the process between two writes."""
        self._command("pause")
        self._running = False
        self._notify("stop")

    def resume(self) -> None:
        """Let the process write again."""
        self._command("resume")
        self._running = True
        self._notify("resume")

    def throttle(self, percentage: int) -> None:
        """Reduce the rate of writes by `percentage` %; 0 restores it."""
        self._command("throttle", percentage)

    def mark_writes(self) -> WriteMarks:
        """Have the kernel mark what the guest's process writes. Raises TrackingError."""
        ours, theirs = Pipe()
        with ours, theirs:
            addresses = self._command("mark writes", fds=[theirs.fileno()])
            with self._living():
                return WriteMarks(addresses, receive_fd(ours), receive_fd(ours))

    def mark_disk_writes(self) -> DiskMarks:
        """Have the guest's process mark what it writes to its disks."""
        marks = DiskMarks.create(self._images.sizes)
        self._command("mark disk writes", fds=[marks.memory.fileno()])
        return marks

    def process_memory(self) -> ProcessMemory:
        """Return the guest's process, and where it has RAM and ROM."""
        return ProcessMemory(self.pid, self._command("addresses"))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the process from writing; whoever wants to stop or start it meanwhile waits."""
        with self._lock:
            if not self._running:
                yield
                return
            self._command("pause")
            try:
                yield
            finally:
                self._command("resume")

    def commit(self) -> None:
        """Mark the guest: its process does not run it again by itself."""
        self._command("commit")

    def begin_handing_out(self, fd: int, job: SourceJob) -> Connection:
        """Hand the guest over in its own process, so that no other process's death matters."""
        return self._begin_handing("hand out", fd, job)

    def begin_handing_in(self, fd: int, job: DestinationJob) -> Connection:
        """Take the guest over in its own process, so that no other process's death matters."""
        self._runs_on = self._runs_on and job.running
        return self._begin_handing("hand in", fd, job)

    def _begin_handing(self, name: str, fd: int, job: SourceJob | DestinationJob) -> Connection:
        ours, theirs = Pipe()
        # The connection shows whether the process lives, and goes on: nobody waits here for an
        # answer, which a process that was stopped at this moment would never give.
        with theirs, suppress(GuestError), self._lock, self._living():
            self._send(self._to_process, name, (job,), (fd, theirs.fileno()))
        os.close(fd)
        return ours

    def settled(self, outcome: Outcome[Source] | Outcome[Destination]) -> None:
        """Record whether the guest's process lets it run now."""
        runs = outcome.state is Source.STAYED
        runs |= outcome.state is Destination.RUNS and self._runs_on
        if runs and not self._running:
            self._running = True
            self._notify("resume")

    def keep(self) -> str:
        """Leave the paused guest to its process, and return how to start it.

        The process waits for as long as the option `orphan` says.
        """
        pid, seconds = self.pid, self._options.orphan
        self.release()
        return (
            f"the guest is kept, whole and paused, by process {pid} for {seconds:.0f} s; if the"
            f" source does not run it: vmferry receive --resume --guest synthetic:pid={pid}"
        )

    def take_up(self) -> None:
        """Let the guest run that the process `pid=` keeps. Raises GuestError."""
        if not self._options.pid:
            raise GuestError("synthetic: which guest was kept? say synthetic:pid=PROCESS")
        knock(self._options.pid)

    def save_devices(self, *, running: bool = True) -> DeviceState:
        """Return a section: whether the guest runs on, its figures, and the sequence numbers.

        Those of the disks, if it has any, are in another one.
        """
        payloads: dict[str, bytes] = {DEVICE_NAME: self._command("save", running)}
        if self._images.disks:
            payloads[DISKS_NAME] = self._command("save disks")
        return few_sections(payloads, VERSION, PAGE_SIZE)

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Create memory and the process, so that it is ready when RAM has arrived."""
        if self._process is not None:
            raise GuestError("synthetic: a guest runs here already")
        if (machine.name, machine.page_size) != (self.machine.name, PAGE_SIZE):
            what = f"{machine.name!r} machine with pages of {machine.page_size} bytes"
            raise GuestError(f"synthetic: cannot be a {what}")
        names = [block.name for block in blocks]
        if names != [RAM_NAME, ROM_NAME] or blocks[1].length != ROM_SIZE:
            raise GuestError(f"synthetic: RAM blocks {names} are not a synthetic guest's")
        size = blocks[0].length
        if size <= 0 or size % PAGE_SIZE:
            raise GuestError(f"synthetic: RAM of {size} bytes is not a multiple of {PAGE_SIZE}")
        if self._expected not in (0, size):
            wanted = format_size(self._expected)
            raise GuestError(
                f"synthetic: the guest that arrives has {format_size(size)} of RAM, not {wanted}: "
                "leave the size out, or give this one"
            )
        self._start(size, incoming=True)

    def prepare_disk(self, name: str) -> Disk:
        """Return the disk, in the image that an option says. Raises GuestError if none does."""
        return self._images.prepare(name)

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Give tables and images to the process; `machine` was checked by `prepare`."""
        del machine
        self._images.check_arrived()
        self._give_disks()
        if not self._images.disks and DISKS_NAME in [found.name for found in state.sections]:
            raise GuestError("synthetic: the guest has disks that did not come: send --disks all")
        names = (DEVICE_NAME, DISKS_NAME) if self._images.disks else (DEVICE_NAME,)
        payload, *disks = payloads_of(state, names, VERSION)
        self._runs_on = self._command("load", payload)
        for state_of_disks in disks:
            self._command("load disks", state_of_disks)

    def invalidate_caches(self) -> None:
        """Make the images durable, and drop what the system has cached of them."""
        self._images.flush()

    def seal(self, *, running: bool) -> None:
        """Give the images their names: they are whole, and durable."""
        del running
        self._images.settle()

    def complete(self, *, running: bool) -> None:
        """Complete the guest without a handover, and let it run if it ran at its source."""
        if running and self._runs_on:
            self.resume()

    def abort_incoming(self) -> None:
        """End the process, which removes everything of the guest but images that a user made."""
        self._images.abandon()
        self.close()

    def counter(self) -> int:
        """Return the number of pages written in the guest's whole life."""
        count: int = self._command("counter")
        return count

    def verify(self) -> list[BadPage]:
        """Return pages that did not match the table, now or just before the guest rewrote them."""
        bad: list[BadPage] = self._command("verify")
        return bad

    def page_digests(self) -> npt.NDArray[np.uint64]:
        """Return the xxh3-128 digests, (n, 2) u64, of all pages of all blocks.

        The guest must be paused.
        """
        digests = []
        for block in self._blocks:
            flat = map_block(block)
            populate_present(flat, block)
            digests.append(page_digests(flat.reshape(-1, PAGE_SIZE)))
        return np.concatenate(digests)

    def digest(self) -> str:
        """Return one digest of all memory, to compare two ends; the guest must be paused."""
        return xxh3_128_hexdigest(self.page_digests().tobytes())

    def release(self) -> None:
        """Leave the process alone; it lives on as if the controller had died, as `orphan` says."""
        if self._process is not None:
            _released.append(self._process)
            self._process = None
        self._forget()

    def close(self) -> None:
        """End the guest's process."""
        if self._connection is not None:
            try:
                send_message(self._connection, (0, "quit"))
            except OSError:
                # The process died before, and only has to be reaped.
                self._running = False
        if self._process is not None:
            try:
                self._process.wait(_QUIT_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._forget()

    def _forget(self) -> None:
        atexit.unregister(self.close)
        if self._connection is not None:
            self._connection.close()
        for block in self._blocks + self._beforehand:
            os.close(block.fd)
        self._images.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._pidfd = None
        self._process, self._connection, self._running = None, None, False
        self._blocks, self._beforehand = (), ()
