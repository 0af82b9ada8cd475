"""A guest of the user's own program: subclass it and write four methods."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..protocol.errors import ParameterError
from ..protocol.wire.marks import DEFAULT_PAGE_SIZE
from .base import Guest
from .errors import GuestError
from .mapping import map_block
from .one_section import one_section, payload_of
from .parts import BlockLayout, DeviceState, Machine, RamBlock
from .tracking.marks import WriteMarks, mark_writes
from .tracking.process_memory import ProcessMemory

VERSION = 1


class ProgramGuest(Guest):
    """A guest that runs in this process: a subclass defines `start`, `stop`, `save` and `load`.

    Its RAM is shared memory made here, in which `memory` gives access to each block; the state of
    its devices is what `save` returns. It starts stopped, so call `resume` to let it run.
    """

    def __init__(
        self, name: str, ram: Mapping[str, int] | None = None, *, page_size: int = DEFAULT_PAGE_SIZE
    ) -> None:
        """Create a guest of the kind `name`, or with `ram` None one that is to arrive.

        `ram` has the length in bytes of each RAM block by its name. Raises ParameterError.
        """
        super().__init__()
        if not 1 <= len(name.encode()) <= 255:
            raise ParameterError(f"name: {name!r} is not from 1 to 255 bytes long")
        self._machine = Machine(name, page_size)
        self._blocks: tuple[RamBlock, ...] = ()
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}
        self._running = False
        self._runs_on = True
        for block, length in ({} if ram is None else ram).items():
            self._make(block, length)

    @abstractmethod
    def start(self) -> None:
        """Let the guest write its memory; called while it is stopped."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the guest: when this returns, its memory does not change any more."""

    @abstractmethod
    def save(self) -> bytes:
        """Return the state outside of memory that the guest needs to go on elsewhere.

        During the first rounds the guest may be running; what counts is the state once it is
        stopped.
        """

    @abstractmethod
    def load(self, state: bytes) -> None:
        """Take over what `save` returned at the source; all memory is here already.

        Raise GuestError if the state cannot be used.
        """

    def memory(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of a RAM block, shared with the migration. Raises KeyError."""
        return self._memory[name]

    def _make(self, name: str, length: int) -> None:
        fd = os.memfd_create(f"vmferry-{name}", os.MFD_CLOEXEC)
        try:
            block = RamBlock(name, length, self._machine.page_size, fd)
            os.ftruncate(fd, length)
            self._memory[name] = map_block(block)
        except BaseException:
            os.close(fd)
            raise
        self._blocks += (block,)

    @property
    def machine(self) -> Machine:
        """Return the machine, which has the name of this kind of guest."""
        return self._machine

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """Return the RAM blocks, in the order in which they were given or arrived."""
        return self._blocks

    @property
    def running(self) -> bool:
        """Return whether the guest was started and not stopped since."""
        return self._running

    def pause(self) -> None:
        """Stop the guest."""
        self.stop()
        self._running = False
        self._notify("stop")

    def resume(self) -> None:
        """Start the guest, or start it again."""
        self.start()
        self._running = True
        self._notify("resume")

    def throttle(self, percentage: int) -> None:
        """Do nothing: a guest that cannot be slowed down is not."""

    def mark_writes(self) -> WriteMarks:
        """Have the kernel mark what this process writes to `memory`. Raises TrackingError."""
        return mark_writes([self._memory[block.name] for block in self._blocks])

    def process_memory(self) -> ProcessMemory:
        """Return this process, and where it has `memory`."""
        addresses = [self._memory[block.name].ctypes.data for block in self._blocks]
        return ProcessMemory(os.getpid(), tuple(addresses))

    def save_devices(self, *, running: bool = True) -> DeviceState:
        """Return one section: whether the guest runs on, in one byte, and what `save` returns."""
        payload = bytes([running]) + self.save()
        return one_section(self._machine.name, VERSION, payload, self._machine.page_size)

    def commit(self) -> None:
        """Do nothing: nothing starts the guest but this program."""

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Create the RAM of the guest that arrives. Raises GuestError for another kind of guest."""
        if self._blocks:
            raise GuestError(f"{self._machine.name}: a guest is here already")
        if (machine.name, machine.page_size) != (self._machine.name, self._machine.page_size):
            what = f"{machine.name!r} with pages of {machine.page_size} bytes"
            raise GuestError(f"{self._machine.name}: cannot be a {what}")
        for block in blocks:
            self._make(block.name, block.length)

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Give the state to `load`; `machine` was checked by `prepare`. Raises GuestError."""
        del machine
        payload = payload_of(state, self._machine.name, VERSION)
        if not payload:
            raise GuestError(f"{self._machine.name}: its device section is empty")
        self._runs_on = bool(payload[0])
        self.load(payload[1:])

    def invalidate_caches(self) -> None:
        """Do nothing: nothing is cached."""

    def complete(self, *, running: bool) -> None:
        """Let the guest run if it ran at its source, and `running` allows it."""
        if running and self._runs_on:
            self.resume()

    def abort_incoming(self) -> None:
        """Drop the memory of the guest that did not arrive."""
        self.close()

    def close(self) -> None:
        """Stop the guest if it runs, and close the descriptors; arrays of `memory` stay valid."""
        if self._running:
            self.pause()
        for block in self._blocks:
            os.close(block.fd)
        self._blocks, self._memory = (), {}
