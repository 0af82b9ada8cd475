"""A guest for benchmarks: it uses existing RAM, is always paused and has no devices."""

from __future__ import annotations

from collections.abc import Sequence

from ....guest.base import Guest
from ....guest.errors import GuestError
from ....guest.one_section import RAM_SECTION_ID
from ....guest.parts import BlockLayout, DeviceState, Machine, RamBlock

DESCRIPTION = b'{"page_size": 4096, "devices": []}'


class StillGuest(Guest):
    """A guest with one RAM block of `size` bytes in the descriptor `fd`, which the caller owns."""

    def __init__(self, fd: int, size: int) -> None:
        super().__init__()
        self._blocks = (RamBlock("pc.ram", size, 4096, fd),)

    @property
    def machine(self) -> Machine:
        """Return the machine `still-1`."""
        return Machine("still-1")

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """Return the only RAM block."""
        return self._blocks

    @property
    def running(self) -> bool:
        """Return False: this guest never runs."""
        return False

    def pause(self) -> None:
        """Do nothing: this guest never runs."""

    def resume(self) -> None:
        """Do nothing: this guest never runs."""

    def throttle(self, percentage: int) -> None:
        """Do nothing: this guest never runs."""

    def save_devices(self, *, running: bool = True) -> DeviceState:
        """Return an empty device state."""
        del running
        return DeviceState((), (), DESCRIPTION, RAM_SECTION_ID)

    def commit(self) -> None:
        """Do nothing: this guest never runs."""

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """Check that the existing RAM has this layout. Raises GuestError."""
        block = self._blocks[0]
        expected = BlockLayout(block.name, block.length, block.page_size)
        if machine.name != self.machine.name or list(blocks) != [expected]:
            raise GuestError(f"this guest has {block.length} bytes of {block.name}, nothing else")

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Do nothing: this guest has no devices."""

    def invalidate_caches(self) -> None:
        """Do nothing: this guest has no caches."""

    def complete(self, *, running: bool) -> None:
        """Do nothing: this guest never runs."""

    def abort_incoming(self) -> None:
        """Do nothing: the caller owns the RAM."""

    def close(self) -> None:
        """Do nothing: the caller owns the descriptor."""
