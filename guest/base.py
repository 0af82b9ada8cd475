"""A guest as a migration sees it: RAM blocks, run control, device state, blockers, listeners."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import numpy.typing as npt

from ..protocol.handover import Destination, Source
from ..protocol.wire.kept import Payload
from .errors import GuestError
from .handing import Outcome
from .handing_in import DestinationJob, hand_in
from .handing_out import SourceJob, hand_out

_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23
_POPULATE_STEP = 64 << 20


@dataclass(frozen=True)
class RamBlock:
    """Guest RAM: `length` bytes from `file_offset` on in the mappable descriptor `fd`."""

    name: str
    length: int
    page_size: int
    fd: int
    file_offset: int = 0


@dataclass(frozen=True)
class BlockLayout:
    """A RAM block that an incoming guest shall have; sizes in bytes."""

    name: str
    length: int
    page_size: int


@dataclass(frozen=True)
class DeviceSection:
    """A device's state, opaque."""

    section_id: int
    name: str
    instance_id: int
    version: int
    payload: Payload


@dataclass(frozen=True)
class Machine:
    """What names the machine. `page_bits_sent`: its stream carries the page size."""

    name: str
    page_size: int = 4096
    capabilities: tuple[str, ...] | None = None
    uuid: bytes | None = None
    page_bits_sent: bool = False


@dataclass(frozen=True)
class DeviceState:
    """All device sections in order: `early` ones stand before RAM. `description`: JSON text."""

    early: tuple[DeviceSection, ...]
    sections: tuple[DeviceSection, ...]
    description: bytes | None
    ram_section_id: int


Listener = Callable[[str], None]


class Guest(ABC):
    """One guest. It lives in one process; others map its RAM through the blocks' descriptors.

    Outgoing: (running) -> pause -> save_devices -> begin_handing_out -> close. A paused guest runs
    on by itself if its controller dies; from `commit` on, which the handover calls, never.
    Incoming: prepare -> others write RAM -> load_devices -> invalidate_caches -> seal ->
    begin_handing_in, which calls `complete`. When it fails behind `prepare`: abort_incoming. A
    `prepare` that raises leaves nothing behind. Once the source may have given its guest up, a
    sealed guest is completed or kept, not aborted.
    Everything that can go wrong raises GuestError, before `complete` if at all possible: the source
    has given its guest up by then.
    """

    def __init__(self) -> None:
        self._blockers: dict[int, str] = {}
        self._tokens = 0
        self._listeners: list[Listener] = []

    @property
    @abstractmethod
    def machine(self) -> Machine:
        """The machine's name and properties."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[RamBlock, ...]:
        """All RAM, in the order of the stream."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether the guest is executing now, so that its RAM may change."""

    @property
    def death_fd(self) -> int | None:
        """A descriptor that is readable once the guest's own process has died; None: it has none.

        It is the guest's, and changes when the guest arrives, is released or is closed.
        """
        return None

    @abstractmethod
    def pause(self) -> None:
        """Stop executing; on return RAM does not change any more."""

    @abstractmethod
    def resume(self) -> None:
        """Execute again."""

    @abstractmethod
    def throttle(self, percentage: int) -> None:
        """Keep the running guest from running for so much of its time; 0: full speed again.

        Where our controller dies it runs at full speed, too.
        """

    @abstractmethod
    def save_devices(self, *, running: bool = True) -> DeviceState:
        """State of all devices; on a running guest only ids and `early` are final.

        `running`: it shall run on where it arrives; otherwise it was stopped before it migrated.
        """

    @abstractmethod
    def commit(self) -> None:
        """The other side may start from now on: stay paused, even if our controller dies."""

    def check_incoming(self) -> None:  # noqa: B027 - many kinds cannot know anything before
        """Raise GuestError where an incoming guest could not be prepared here.

        As far as can be known before it arrives: nothing is made, and the source may still fail.
        """

    def begin_handing_out(self, fd: int, job: SourceJob) -> Connection:
        """Begin to hand the paused guest over on the channel `fd`, which belongs to the handover.

        Returns a connection that brings ALL_SENT and at last an Outcome, takes CANCEL and LEAVE,
        and ends early when the guest dies.
        """
        ours, theirs = Pipe()
        threading.Thread(target=hand_out, args=(fd, job, self, theirs), daemon=True).start()
        return ours

    def begin_handing_in(self, fd: int, job: DestinationJob) -> Connection:
        """Begin to take over the whole guest on the channel `fd`, which belongs to the handover.

        Returns a connection that brings PROMISED and at last an Outcome, takes CANCEL and LEAVE,
        and ends early when the guest dies.
        """
        ours, theirs = Pipe()
        threading.Thread(target=hand_in, args=(fd, job, self, theirs), daemon=True).start()
        return ours

    def settled(self, outcome: Outcome[Source] | Outcome[Destination]) -> None:  # noqa: B027
        """Take note of the outcome of a handover that another process carried out."""

    @abstractmethod
    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Make or check the RAM of an incoming guest. Raises GuestError when it does not fit."""

    @abstractmethod
    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Take in the state of all devices, behind all of RAM."""

    @abstractmethod
    def invalidate_caches(self) -> None:
        """Drop what was cached of disks and memory before the incoming guest runs."""

    def seal(self, *, running: bool) -> None:  # noqa: B027 - what lives in memory cannot last
        """Make everything that can fail durable; after this only `complete` is left.

        `running` is what `complete` will be called with. Raises GuestError.
        """

    def finisher(self) -> Callable[[], None] | None:
        """Return a picklable callable that completes the sealed guest from another process.

        It raises GuestError, and does nothing where the guest is complete already. None where only
        the guest's own process can complete it, and before `seal`.
        """
        return None

    def remover(self) -> Callable[[], None] | None:
        """Return a picklable callable that removes the incoming guest from another process.

        It is for when the guest's own process has died, and no answer can have left. Ask before
        `prepare`, and again after it. None where nothing stays behind of such a guest. Raises
        GuestError where `prepare` would.
        """
        return None

    def keep(self) -> str:
        """Give up the descriptors and leave the sealed guest where it is, not started.

        Returns one line that says where it is and how to take it up. Raises GuestError where this
        kind of guest cannot be kept.
        """
        raise GuestError("a guest of this kind cannot be kept when it is not started")

    def take_up(self) -> None:
        """Complete a guest that an earlier receive kept. Raises GuestError where there is none."""
        raise GuestError("a guest of this kind is never kept, so there is none to take up")

    @abstractmethod
    def complete(self, *, running: bool) -> None:
        """The incoming guest is whole; `running`: let it execute, unless its state says not to."""

    @abstractmethod
    def abort_incoming(self) -> None:
        """Remove what `prepare` and the steps after it made, sealed or not, and nothing else."""

    @abstractmethod
    def close(self) -> None:
        """Give up the descriptors, and end what only lived for this guest."""

    def release(self) -> None:
        """Give up the descriptors, and leave the guest to itself; nothing is left to `close`."""
        self.close()

    def add_blocker(self, reason: str) -> int:
        """Forbid migration; the token takes the blocker away again."""
        self._tokens += 1
        self._blockers[self._tokens] = reason
        return self._tokens

    def remove_blocker(self, token: int) -> None:
        """Take a blocker away."""
        del self._blockers[token]

    @property
    def blockers(self) -> tuple[str, ...]:
        """Reasons why the guest may not migrate now."""
        return tuple(self._blockers.values())

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with "stop" and "resume" as they happen."""
        self._listeners.append(listener)

    def _notify(self, event: str) -> None:
        for listener in self._listeners:
            listener(event)


def block_layout(blocks: Sequence[RamBlock]) -> tuple[dict[str, Any], ...]:
    """Everything of RAM blocks but the descriptors, which travel on their own."""
    return tuple(
        {
            "name": block.name,
            "length": block.length,
            "page_size": block.page_size,
            "file_offset": block.file_offset,
        }
        for block in blocks
    )


def map_block(block: RamBlock) -> npt.NDArray[np.uint8]:
    """The block's bytes, shared with everybody who maps them."""
    return np.frombuffer(mmap.mmap(block.fd, block.length, offset=block.file_offset), np.uint8)


def populate_present(ram: npt.NDArray[np.uint8], block: RamBlock) -> None:
    """Map at once the pages that the block's file holds, not one fault each; holes stay holes.

    For writing, too: pages that exist are mapped writable, and asking for it costs twice as much.
    """
    end = block.file_offset + block.length
    position = block.file_offset
    while position < end:
        try:
            start = os.lseek(block.fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = min(os.lseek(block.fd, start, os.SEEK_HOLE), end)
        if start < position:
            populate(ram, False, start - block.file_offset, position - block.file_offset)


def is_hole(block: RamBlock, start: int, end: int) -> bool:
    """Whether bytes `start` to `end` of the block were never written in its file.

    They are zero then, and reading them through a mapping would allocate them.
    """
    try:
        data = os.lseek(block.fd, block.file_offset + start, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return True
        raise
    return data >= block.file_offset + end


def populate(
    ram: npt.NDArray[np.uint8], write: bool, start: int = 0, end: int | None = None
) -> None:
    """Map bytes `start` to `end` of a `map_block` array at once, allocating them if `write`."""
    end = len(ram) if end is None else end
    mapping = ram.base.obj if isinstance(ram.base, memoryview) else ram.base
    assert isinstance(mapping, mmap.mmap)
    advice = _MADV_POPULATE_WRITE if write else _MADV_POPULATE_READ
    start = start // mmap.PAGESIZE * mmap.PAGESIZE
    for position in range(start, end, _POPULATE_STEP):
        try:
            mapping.madvise(advice, position, min(_POPULATE_STEP, end - position))
        except OSError as error:
            # Kernels before 5.14 do not know the advice; pages then fault one by one.
            if error.errno == errno.EINVAL:
                return
            raise
