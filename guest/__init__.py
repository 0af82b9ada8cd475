"""Model a guest: RAM blocks in shared memory, run control, device state, dirty tracking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol.lazy import exported

if TYPE_CHECKING:
    from .base import Guest
    from .errors import GuestError, MigrationCancelledError, MigrationError
    from .open import open_guest
    from .parts import BlockLayout, DeviceSection, DeviceState, Machine, RamBlock
    from .program import ProgramGuest
    from .tracking.errors import TrackingError
    from .tracking.marks import WriteMarks, mark_writes
    from .tracking.process_memory import ProcessMemory

__all__ = [
    "BlockLayout",
    "DeviceSection",
    "DeviceState",
    "Guest",
    "GuestError",
    "Machine",
    "MigrationCancelledError",
    "MigrationError",
    "ProcessMemory",
    "ProgramGuest",
    "RamBlock",
    "TrackingError",
    "WriteMarks",
    "mark_writes",
    "open_guest",
]

__getattr__ = exported(
    __name__,
    {
        "base": "Guest",
        "errors": "GuestError MigrationCancelledError MigrationError",
        "open": "open_guest",
        "parts": "BlockLayout DeviceSection DeviceState Machine RamBlock",
        "program": "ProgramGuest",
        "tracking.errors": "TrackingError",
        "tracking.marks": "WriteMarks mark_writes",
        "tracking.process_memory": "ProcessMemory",
    },
)
