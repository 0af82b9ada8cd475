"""A guest for benchmarks: RAM that exists already, always paused, no devices."""

from __future__ import annotations

from collections.abc import Sequence

from ...guest.base import BlockLayout, DeviceState, Guest, Machine, RamBlock
from ...guest.errors import GuestError

RAM_SECTION_ID = 2
DESCRIPTION = b'{"page_size": 4096, "devices": []}'


class StillGuest(Guest):
    """One RAM block, `size` bytes in the descriptor `fd`, which stays the caller's."""

    def __init__(self, fd: int, size: int) -> None:
        super().__init__()
        self._blocks = (RamBlock("pc.ram", size, 4096, fd),)

    @property
    def machine(self) -> Machine:
        """`still-1`."""
        return Machine("still-1")

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """The one block."""
        return self._blocks

    @property
    def running(self) -> bool:
        """Never."""
        return False

    def pause(self) -> None:
        """It does not run."""

    def resume(self) -> None:
        """It does not run."""

    def throttle(self, percentage: int) -> None:
        """It does not run."""

    def save_devices(self, *, running: bool = True) -> DeviceState:
        """None."""
        del running
        return DeviceState((), (), DESCRIPTION, RAM_SECTION_ID)

    def commit(self) -> None:
        """Nothing could run here."""

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """The RAM is there; see that it fits."""
        block = self._blocks[0]
        expected = BlockLayout(block.name, block.length, block.page_size)
        if machine.name != self.machine.name or list(blocks) != [expected]:
            raise GuestError(f"this guest has {block.length} bytes of {block.name}, nothing else")

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """None."""

    def invalidate_caches(self) -> None:
        """Nothing is cached."""

    def complete(self, *, running: bool) -> None:
        """It does not run."""

    def abort_incoming(self) -> None:
        """The RAM is the caller's."""

    def close(self) -> None:
        """The descriptor is the caller's."""
