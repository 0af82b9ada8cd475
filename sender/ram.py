"""Send RAM as a source: its workers make the passes, and its path has the pieces around them."""

from __future__ import annotations

from ..guest.base import Guest
from ..guest.parts import DeviceState
from ..transport.settings import TrackerKind
from . import stream
from .page_path import PagePath
from .processes import Processes
from .sources import StartRound

FOUND = ("normal", "duplicate", "xbzrle_pages", "unchanged")
"""Counters of the workers that add up to the pages found dirty."""


class RamSource:
    """The RAM of the guest."""

    def __init__(self, guest: Guest, path: PagePath, processes: Processes) -> None:
        self._guest = guest
        self._path = path
        self._processes = processes
        self._page_size = guest.machine.page_size
        self._section_id = 0

    @property
    def total(self) -> int:
        """Return the size of all RAM blocks."""
        return sum(block.length for block in self._guest.blocks)

    @property
    def scanned(self) -> int:
        """Return how many bytes all rounds have gone over so far."""
        return self._processes.scanned("scanned") * self._page_size

    @property
    def found(self) -> int:
        """Return the size of the pages that all rounds have found dirty so far."""
        return sum(map(self._processes.scanned, FOUND)) * self._page_size

    def pending(self) -> int | None:
        """Return the size of the pages that are dirty now, if the tracker can count them."""
        return self._processes.dirty_bytes()

    def prepare(self, tracker: TrackerKind) -> None:
        """Choose how the dirty pages of a running guest are found. Raises MigrationError."""
        if self._guest.running:
            self._processes.begin_tracking(tracker)

    def start(self, state: DeviceState) -> bytes:
        """Return the list of RAM blocks."""
        self._section_id = state.ram_section_id
        return self._path.ram_start(self._guest, self._section_id)

    def iterate(self, command: StartRound) -> None:
        """Have the workers send the dirty pages. Raises GuestError."""
        self._processes.run_round(command)

    def complete(self) -> bytes:
        """Return the empty piece that ends `ram`."""
        return stream.ram_end(self._section_id)

    def close(self) -> None:
        """Do nothing: the processes hold what was shared."""
