"""`qemu:QMP-SOCKET,scan`: the guest of a running QEMU that shares its RAM with other processes.

The processes of a migration map the RAM and move it by themselves. What QEMU does not share (ROMs,
video memory, tables) and the state of its devices are in a stream of QEMU's own at the source,
and reach QEMU by such a stream at the destination.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe

from ...protocol.handover import Destination, Source
from ...transport.shared import wait_readable
from ..base import Guest
from ..errors import GuestError
from ..handing import Outcome
from ..handing_out import SourceHolder, SourceJob
from ..parts import BlockLayout, DeviceState, Machine, RamBlock
from . import loading, local_migration, queries
from .bringing_back import start
from .checks import check_destination, check_source
from .global_state import as_running, says_stopped
from .guard import Duty, Guard
from .local_stream import Head
from .monitor import GoneError, Monitor, QemuError
from .scanned_memory import ScannedMemory
from .settings import Wanted


class ScannedGuest(Guest):
    """The guest of the QEMU whose QMP socket is at `path`, or one that is to arrive there."""

    def __init__(self, path: str) -> None:
        """Connect to the QEMU, and ask nothing yet. Raises GuestError."""
        super().__init__()
        self._path = path
        self._monitor: Monitor | None = None
        # A migration and a command that stops the guest may call at the same time.
        self._lock = threading.RLock()
        self._head: Head | None = None
        self._state: DeviceState | None = None
        self._memory: ScannedMemory | None = None
        self._guard: Guard | None = None
        self._duty = Duty()
        self._loaded = False
        self._runs_on = True
        self._runs_here = True
        self._death_fd: int | None = None
        self._process = self._qemu.process
        try:
            self._death_fd = os.pidfd_open(self._process)
        except OSError as error:
            # As number 0 it has a process of another namespace.
            self.close()
            raise GuestError(f"{path}: the process of this QEMU is not visible here") from error

    @property
    def _qemu(self) -> Monitor:
        """Return the connection to QEMU, which one process at a time can have."""
        if self._monitor is None:
            self._monitor = Monitor(self._path)
        return self._monitor

    def _disconnect(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _present(self) -> Head:
        """Return what is known of a guest that is here. Raises GuestError."""
        with self._lock:
            if self._head is None:
                check_source(self._qemu)
                self._set_duty(Duty(run=queries.is_running(self._qemu)))
                head = local_migration.look(self._qemu, self._remember)
                self._set_duty(Duty())
                self._memory = ScannedMemory(self._qemu, head.blocks)
                self._head = head
            return self._head

    def _set_duty(self, duty: Duty) -> None:
        """Have the guard know what it is to do if this process dies; start it if need be."""
        self._duty = duty
        if self._guard is None or not self._guard.alive:
            self._guard = Guard(self._process, self._path)
        self._guard.set_duty(duty)

    def _remember(self, settings: Wanted) -> None:
        self._set_duty(replace(self._duty, settings=settings))

    @property
    def machine(self) -> Machine:
        """Return the machine, as QEMU's stream names it. Raises GuestError."""
        return self._present().machine

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """Return all RAM blocks; those that QEMU does not share are zero until `finish_ram`."""
        if self._memory is None:
            self._present()
        assert self._memory is not None
        return self._memory.blocks

    @property
    def running(self) -> bool:
        """Return whether the guest executes, as QEMU says, unless another process talks to it."""
        if self._monitor is not None:
            self._runs_here = queries.is_running(self._monitor)
        return self._runs_here

    @property
    def blockers(self) -> tuple[str, ...]:
        """Return the reasons why the guest may not migrate now, QEMU's own among them."""
        return (*super().blockers, *queries.blockers(self._qemu))

    @property
    def death_fd(self) -> int | None:
        """Return the pidfd of the QEMU."""
        return self._death_fd

    def pause(self) -> None:
        """Stop the guest."""
        with self._lock:
            self._set_duty(Duty(run=True))
            self._qemu.ask("stop")
        self._notify("stop")

    def resume(self) -> None:
        """Let the guest run again; QEMU takes hold of its disks before, if it had let go."""
        with self._lock:
            start(self._qemu)
            self._state = None
            self._set_duty(Duty())
        self._notify("resume")

    def throttle(self, percentage: int) -> None:
        """Do nothing: QEMU slows a guest down only in migrations of its own."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the guest from writing; whoever wants to stop or start it meanwhile waits."""
        with self._lock:
            if not self.running:
                yield
                return
            self._set_duty(Duty(run=True))
            self._qemu.ask("stop")
            try:
                yield
            finally:
                start(self._qemu)
                self._set_duty(Duty())

    def finish_ram(self) -> None:
        """Take from QEMU what it does not share, and the state of the devices. Raises GuestError.

        QEMU lets go of its disks.
        """
        with self._lock:
            head = self._present()
            assert self._memory is not None
            self._memory.clear_own()
            stream = local_migration.take(self._qemu, self._remember, self._memory.own)
            if stream.head != head:
                raise GuestError("the machine changed while it migrated: try again")
            self._state = stream.state

    def save_devices(self, *, running: bool = True) -> DeviceState:
        """Return the sections as QEMU wrote them; before `finish_ram` there are none.

        The run state in them is changed if the guest was only stopped to migrate.
        """
        head = self._present()
        if self._state is None:
            return DeviceState(head.early, (), None, head.ram_section_id)
        return as_running(self._state) if running else self._state

    def commit(self) -> None:
        """Leave the guest stopped, whatever happens to this process."""
        self._duty = Duty()
        with suppress(GuestError):
            self._set_duty(self._duty)

    def begin_handing_out(self, fd: int, job: SourceJob) -> Connection:
        """Have the guard hand the guest over, so that the death of no other process matters."""
        assert self._guard is not None
        self._runs_here = False
        # The guard talks to QEMU if the guest stays.
        self._disconnect()
        ours, theirs = Pipe()
        with theirs:
            self._guard.hand_out(fd, job, theirs)
        os.close(fd)
        return ours

    def successor(self) -> SourceHolder | None:
        """Return this guest: QEMU lives on if the guard dies that handed its guest over."""
        try:
            self._runs_here = queries.is_running(self._qemu)
        except GoneError:
            return None
        return self

    def settled(self, outcome: Outcome[Source] | Outcome[Destination]) -> None:
        """Record whether the guest runs here again."""
        self._duty, self._state = Duty(), None
        if outcome.state is Source.STAYED and self.running:
            self._notify("resume")

    def check_incoming(self) -> None:
        """Raise GuestError unless the QEMU waits for a guest."""
        check_destination(self._qemu)

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Open the QEMU's memory, and check that the guest fits. Raises GuestError."""
        self.check_incoming()
        here = queries.machine_type(self._qemu)
        if machine.name != here:
            raise GuestError(f"the guest that arrives is a {machine.name}, and this QEMU a {here}")
        self._memory = ScannedMemory(self._qemu, blocks)
        self._loaded = False

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Have QEMU load what it does not share, and all devices. Raises GuestError."""
        assert self._memory is not None
        layouts = [BlockLayout(b.name, b.length, b.page_size) for b in self._memory.blocks]
        self._loaded = True
        loading.load(self._qemu, machine, layouts, state, self._memory.own)
        self._runs_on = not says_stopped(state)

    def invalidate_caches(self) -> None:
        """Do nothing: QEMU takes hold of its disks as the guest starts, and not before."""

    def seal(self, *, running: bool) -> None:
        """Record whether the guest is to run."""
        self._runs_on = self._runs_on and running

    def finisher(self) -> loading.Starter:
        """Return what lets the guest run from another process."""
        return loading.Starter(self._path, self._process, run=self._runs_on)

    def remover(self) -> loading.Ender:
        """Return what ends a QEMU whose guest belongs to the source, from another process."""
        return loading.Ender(self._path, self._process)

    def complete(self, *, running: bool) -> None:
        """Let the guest run, if it is to. Raises GuestError if it does not."""
        if running and self._runs_on:
            start(self._qemu)
            self._notify("resume")
        self._forget()

    def keep(self) -> str:
        """Leave the loaded guest to its QEMU, stopped, and return how to start it."""
        ended = self._death_fd is not None and bool(wait_readable([self._death_fd], 0))
        self.close()
        if ended:
            return f"the QEMU of {self._path} has ended, and its copy of the guest with it"
        return (
            f"the guest is kept, whole and stopped, in the QEMU of {self._path}; if the source does"
            f" not run it: vmferry receive --resume --guest qemu:{self._path},scan"
        )

    def take_up(self) -> None:
        """Let the guest run that was kept here. Raises GuestError."""
        status = queries.migration(self._qemu)["status"]
        if queries.run_state(self._qemu) != "paused" or status != "completed":
            raise GuestError(f"{self._path}: no guest was kept in this QEMU")
        start(self._qemu)

    def abort_incoming(self) -> None:
        """End a QEMU that has begun to load the guest; one that has not still waits for it."""
        with suppress(QemuError):
            if self._loaded:
                loading.end(self._qemu)
        self.close()

    def _forget(self) -> None:
        """Forget the memory, which is looked for again when this guest migrates."""
        if self._memory is not None:
            self._memory.close()
        self._memory, self._head, self._state = None, None, None

    def close(self) -> None:
        """Let go of QEMU; if its guest is stopped because of this one, the guard continues it."""
        self._disconnect()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        self._forget()
        if self._death_fd is not None:
            os.close(self._death_fd)
            self._death_fd = None
