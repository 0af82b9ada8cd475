"""Define a guest as a migration sees it: RAM blocks, run control, device state and blockers."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe

from ..protocol.handover import Destination, Source
from .disks.image import Disk
from .disks.marks import DiskMarks
from .errors import GuestError
from .handing import Outcome
from .handing_in import DestinationJob, hand_in
from .handing_out import SourceHolder, SourceJob, hand_out
from .parts import BlockLayout, DeviceState, Machine, RamBlock
from .tracking.errors import TrackingError
from .tracking.marks import WriteMarks
from .tracking.process_memory import ProcessMemory

Listener = Callable[[str], None]


class Guest(ABC):
    """The interface of a guest, which lives in one process; others map its RAM by descriptors.

    Outgoing: (running) -> pause -> finish_ram -> save_devices -> begin_handing_out -> close. If its
    controller dies, a paused guest runs on by itself; after `commit`, which the handover calls, it
    never does.

    Incoming: prepare -> others write RAM -> load_devices -> invalidate_caches -> seal ->
    begin_handing_in, which calls `complete`. After a failure later than `prepare`: abort_incoming.
    A `prepare` that raises leaves nothing behind. Once the source may have given its guest up, a
    sealed guest is completed or kept, not aborted.

    All failures raise GuestError, before `complete` if at all possible: by then the source has
    given its guest up.
    """

    def __init__(self) -> None:
        self._blockers: dict[int, str] = {}
        self._tokens = 0
        self._listeners: list[Listener] = []

    @property
    @abstractmethod
    def machine(self) -> Machine:
        """Return the machine's name and properties."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[RamBlock, ...]:
        """Return all RAM blocks, in the order of the stream."""

    @property
    def disks(self) -> tuple[Disk, ...]:
        """Return the disks, which are locked for this guest; those of many kinds are elsewhere."""
        return ()

    @property
    def ram_size(self) -> int:
        """Return the bytes of all RAM blocks."""
        return sum(block.length for block in self.blocks)

    @property
    @abstractmethod
    def running(self) -> bool:
        """Return whether the guest is executing now, so that its RAM may change."""

    @property
    def moves_itself(self) -> bool:
        """Return whether its hypervisor migrates it, and is only asked to (`control.migrating`)."""
        return False

    @property
    def death_fd(self) -> int | None:
        """Return a descriptor that becomes readable when the guest's own process dies, or None.

        It is None for a guest without a process. The descriptor belongs to the guest, and changes
        when the guest arrives, is released or is closed.
        """
        return None

    @abstractmethod
    def pause(self) -> None:
        """Stop the guest; on return its RAM does not change any more."""

    @abstractmethod
    def resume(self) -> None:
        """Let the guest execute again."""

    @abstractmethod
    def throttle(self, percentage: int) -> None:
        """Stop the guest's processors for `percentage` % of the time; 0 restores full speed.

        If the controller dies, the guest runs at full speed again.
        """

    def mark_writes(self) -> WriteMarks:
        """Have the kernel mark the pages that the guest writes, until the result is closed.

        Raises TrackingError with the reason if this guest, or this kernel, cannot; then a migration
        compares digests of all pages instead. A guest that can calls `tracking.marks.mark_writes`
        in the process that writes the memory. Writes through other mappings are not marked.
        """
        raise TrackingError("a guest of this kind does not mark its writes")

    def mark_disk_writes(self) -> DiskMarks:
        """Mark the chunks of the disks that the guest writes, until the result is closed.

        Raises TrackingError if nobody tells of all writes; then a migration compares digests of all
        chunks instead. A guest that can calls `DiskMarks.written` behind each write.
        """
        raise TrackingError("a guest of this kind does not mark what it writes to its disks")

    def process_memory(self) -> ProcessMemory:
        """Return which process writes the guest's memory, and where it has the blocks mapped.

        Its soft-dirty bits show what was written, where `mark_writes` cannot be had. A guest that
        says so can be `held`. Raises TrackingError if this guest cannot say, or if more than that
        one mapping is written: by other processes, or by devices (vhost-user, VFIO).
        """
        raise TrackingError("a guest of this kind does not say which process writes its memory")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the guest from writing for some milliseconds, of which no listener hears.

        A guest that is stopped is left so. Override this where several threads stop and start the
        guest. If the controller dies, the guest runs on.
        """
        if not self.running:
            yield
            return
        listeners, self._listeners = self._listeners, []
        try:
            self.pause()
            try:
                yield
            finally:
                self.resume()
        finally:
            self._listeners = listeners

    def finish_ram(self) -> None:  # noqa: B027 - usual guests have all RAM at any time
        """Complete blocks whose contents can be had of a paused guest only.

        It is called once the guest is paused, before the last round. Raises GuestError.
        """

    @abstractmethod
    def save_devices(self, *, running: bool = True) -> DeviceState:
        """Return the state of all devices; on a running guest only ids and `early` are final.

        `running` says that the guest is to run where it arrives; otherwise it was stopped before it
        migrated.
        """

    @abstractmethod
    def commit(self) -> None:
        """Keep the guest paused, even if its controller dies: the other side may start it now."""

    def check_incoming(self) -> None:  # noqa: B027 - many kinds cannot know anything before
        """Raise GuestError if an incoming guest could not be prepared here.

        This checks what can be known before the guest arrives. It creates nothing, and the source
        may still fail.
        """

    def begin_handing_out(self, fd: int, job: SourceJob) -> Connection:
        """Start to hand the paused guest over on the channel `fd`, and pass `fd` to the handover.

        Return a connection that delivers ALL_SENT and at last an Outcome, accepts CANCEL and LEAVE,
        and ends early if the guest dies.
        """
        ours, theirs = Pipe()
        threading.Thread(target=hand_out, args=(fd, job, self, theirs), daemon=True).start()
        return ours

    def successor(self) -> SourceHolder | None:
        """Return who holds the paused guest once the process has died that handed it over.

        It is None if the guest died with that process. `running` says whether that process let the
        guest run again before it died.
        """
        return None

    def begin_handing_in(self, fd: int, job: DestinationJob) -> Connection:
        """Start to take over the whole guest on the channel `fd`, and pass `fd` to the handover.

        Return a connection that delivers PROMISED and at last an Outcome, accepts CANCEL and LEAVE,
        and ends early if the guest dies.
        """
        ours, theirs = Pipe()
        threading.Thread(target=hand_in, args=(fd, job, self, theirs), daemon=True).start()
        return ours

    def settled(self, outcome: Outcome[Source] | Outcome[Destination]) -> None:  # noqa: B027
        """Record the outcome of a handover that another process carried out."""

    @abstractmethod
    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Create or check the RAM of an incoming guest. Raises GuestError if it does not fit."""

    def prepare_disk(self, name: str) -> Disk:
        """Return the disk `name` of the incoming guest, which others then write.

        It is called after `prepare`, once per disk. Raises GuestError if there can be no such disk.
        """
        raise GuestError(f"a guest of this kind takes no disks, and the source sends {name!r}")

    @abstractmethod
    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Load the state of all devices, after all of RAM has arrived."""

    @abstractmethod
    def invalidate_caches(self) -> None:
        """Make the disks durable, then drop what is cached of them and of their sizes.

        It is called when all of RAM and disks has arrived, before the guest runs. Raises
        GuestError.
        """

    def seal(self, *, running: bool) -> None:  # noqa: B027 - what lives in memory cannot last
        """Make everything that can fail durable; after this only `complete` is left.

        `running` is the value with which `complete` will be called. Raises GuestError.
        """

    def finisher(self) -> Callable[[], None] | None:
        """Return a picklable callable that completes the sealed guest from another process.

        The callable raises GuestError, and does nothing if the guest is complete already. Return
        None before `seal`, and if only the guest's own process can complete it.
        """
        return None

    def remover(self) -> Callable[[], None] | None:
        """Return a picklable callable that removes the incoming guest from another process.

        It is used when the guest's own process has died before an answer can have been sent. Call
        this method before `prepare`, and again after it. Return None if such a guest leaves nothing
        behind. Raises GuestError where `prepare` would.
        """
        return None

    def keep(self) -> str:
        """Close the descriptors and leave the sealed guest where it is, not started.

        Return one line that says where the guest is and how to start it. Raises GuestError if this
        kind of guest cannot be kept.
        """
        raise GuestError("a guest of this kind cannot be kept when it is not started")

    def take_up(self) -> None:
        """Complete a guest that an earlier receive kept. Raises GuestError if there is none."""
        raise GuestError("a guest of this kind is never kept, so there is none to take up")

    @abstractmethod
    def complete(self, *, running: bool) -> None:
        """Complete the incoming guest, which is whole.

        With `running` it starts to execute, unless its state says that it was stopped.
        """

    @abstractmethod
    def abort_incoming(self) -> None:
        """Remove what `prepare` and later steps created, sealed or not, and nothing else."""

    @abstractmethod
    def close(self) -> None:
        """Close the descriptors, and end what only existed for this guest."""

    def release(self) -> None:
        """Close the descriptors, and leave the guest to itself; nothing is left to `close`."""
        self.close()

    def add_blocker(self, reason: str) -> int:
        """Forbid migration, and return the token that removes this blocker."""
        self._tokens += 1
        self._blockers[self._tokens] = reason
        return self._tokens

    def remove_blocker(self, token: int) -> None:
        """Remove a blocker."""
        del self._blockers[token]

    @property
    def blockers(self) -> tuple[str, ...]:
        """Return the reasons why the guest may not migrate now."""
        return tuple(self._blockers.values())

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with "stop" and "resume" when they happen."""
        self._listeners.append(listener)

    def _notify(self, event: str) -> None:
        for listener in self._listeners:
            listener(event)
