"""Define what a migration sends in rounds: sources, each an iterative section of the stream.

A round is one pass over all sources, in their order. The coordinator knows this interface alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..guest.parts import DeviceState
from ..transport.settings import TrackerKind

if TYPE_CHECKING:
    from .disks.source import DiskSource


@dataclass(frozen=True)
class StartRound:
    """Command: make one pass. `tracked`: another round will follow, so note what is sent."""

    number: int
    tracked: bool


class Source(Protocol):
    """A part of the guest that is sent in rounds, and that the guest changes while it runs.

    The calls: `prepare`, `start`, `iterate` in each round, `complete`; `close` after all of them.
    The last round is of the paused guest.
    """

    @property
    def total(self) -> int:
        """Return the size of this part in bytes."""

    @property
    def scanned(self) -> int:
        """Return how many bytes all rounds have gone over so far, changed or not."""

    @property
    def found(self) -> int:
        """Return how many bytes all rounds have found to be sent so far."""

    def pending(self) -> int | None:
        """Return how many bytes are dirty now, or None if only reading all would show."""

    def prepare(self, tracker: TrackerKind) -> None:
        """Choose how changes are found, before anything listens or connects.

        Raises MigrationError if this part cannot be sent as it is wanted.
        """

    def start(self, state: DeviceState) -> bytes:
        """Return the piece that begins the section; `state` has the ids of all other ones."""

    def iterate(self, command: StartRound) -> None:
        """Make one pass; everything that it found was handed to the channel afterwards.

        Raises GuestError.
        """

    def complete(self) -> bytes:
        """Return the piece that ends the section, after the last round."""

    def close(self) -> None:
        """Release everything, once all processes have ended."""


class Sources:
    """All sources of a migration, in the order of the stream; `disks` is one of them, if any."""

    def __init__(self, sources: Sequence[Source], disks: DiskSource | None = None) -> None:
        self._sources = tuple(sources)
        self.disks = disks
        """The source of the disks, for figures of their own."""

    @property
    def total(self) -> int:
        """Return the size of all sources in bytes."""
        return sum(source.total for source in self._sources)

    @property
    def scanned(self) -> int:
        """Return how many bytes all rounds have gone over so far, changed or not."""
        return sum(source.scanned for source in self._sources)

    @property
    def found(self) -> int:
        """Return how many bytes all rounds have found to be sent so far."""
        return sum(source.found for source in self._sources)

    def pending(self) -> int | None:
        """Return how many bytes are dirty now, or None if a source does not know."""
        counts = [source.pending() for source in self._sources]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def prepare(self, tracker: TrackerKind) -> None:
        """Choose how changes are found. Raises MigrationError."""
        for source in self._sources:
            source.prepare(tracker)

    def start(self, state: DeviceState) -> bytes:
        """Return the pieces that begin the sections."""
        return b"".join(source.start(state) for source in self._sources)

    def iterate(self, command: StartRound) -> None:
        """Make one round. Raises GuestError."""
        for source in self._sources:
            source.iterate(command)

    def complete(self) -> bytes:
        """Return the pieces that end the sections."""
        return b"".join(source.complete() for source in self._sources)

    def close(self) -> None:
        """Release everything, once all processes have ended."""
        for source in self._sources:
            source.close()
