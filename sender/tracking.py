"""Choose how a migration finds dirty pages, and hold what that needs for as long as it lasts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ..guest.base import Guest
from ..guest.errors import MigrationError
from ..guest.tracking.errors import TrackingError
from ..guest.tracking.marks import WriteMarks, marked_bytes
from ..guest.tracking.soft_dirty import SoftDirtyMarks, read_soft_dirty
from ..transport.settings import TrackerKind

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerTracking:
    """The way in which dirty pages are found, as far as a worker needs to know it."""

    kind: TrackerKind
    addresses: tuple[int, ...] = ()
    """Addresses of the blocks in the guest's process, for userfaultfd."""
    fds: int = 0
    """Number of descriptors that follow those of the blocks."""


BY_DIGESTS = WorkerTracking(TrackerKind.DIGESTS)
"""The way by digests, which each worker keeps by itself; the kernel marks nothing."""


@dataclass(frozen=True)
class Tracking:
    """The way of one migration to find dirty pages, with what it needs of the kernel."""

    guest: Guest
    marks: WriteMarks | SoftDirtyMarks | None = None
    """The kernel's marks; None: digests."""

    @property
    def kind(self) -> TrackerKind:
        """Return the name of this way."""
        if self.marks is None:
            return TrackerKind.DIGESTS
        soft = isinstance(self.marks, SoftDirtyMarks)
        return TrackerKind.SOFT_DIRTY if soft else TrackerKind.USERFAULTFD

    def for_workers(self) -> WorkerTracking:
        """Return what workers need beside the descriptors."""
        addresses = self.marks.addresses if isinstance(self.marks, WriteMarks) else ()
        return WorkerTracking(self.kind, addresses, len(self._own_fds()))

    def fds(self) -> list[int]:
        """Return the descriptors that a process which scans RAM needs: of the blocks, and more."""
        return [*(block.fd for block in self.guest.blocks), *self._own_fds()]

    def _own_fds(self) -> list[int]:
        if self.marks is None:
            return []
        if isinstance(self.marks, SoftDirtyMarks):
            return [self.marks.table]
        return [self.marks.pagemap]

    def begin_round(self) -> None:
        """Do what must be done while no worker scans. Raises GuestError."""
        if isinstance(self.marks, SoftDirtyMarks):
            self.marks.collect(self.guest)

    def dirty_bytes(self) -> int | None:
        """Return how many bytes are dirty now, or None if only reading them would show."""
        if self.marks is None:
            return None
        if isinstance(self.marks, SoftDirtyMarks):
            return self.marks.dirty_bytes()
        return marked_bytes(self.marks, [block.length for block in self.guest.blocks])

    def close(self) -> None:
        """Stop marking the guest's writes."""
        if self.marks is not None:
            self.marks.close()


_MARKS: dict[TrackerKind, Callable[[Guest], WriteMarks | SoftDirtyMarks]] = {
    TrackerKind.USERFAULTFD: lambda guest: guest.mark_writes(),
    TrackerKind.SOFT_DIRTY: lambda guest: read_soft_dirty(guest.process_memory(), guest),
}
"""Functions that begin to mark, by the kind of marks, best first. They raise TrackingError."""


def begin_tracking(guest: Guest, wanted: TrackerKind) -> Tracking:
    """Return the best way that is possible, or the one that is wanted. Raises MigrationError."""
    kinds = list(_MARKS) if wanted is TrackerKind.AUTO else [wanted]
    for kind in kinds:
        if kind is TrackerKind.DIGESTS:
            break
        try:
            return Tracking(guest, _MARKS[kind](guest))
        except TrackingError as error:
            reason = f"dirty pages cannot be tracked by {kind.value}: {error}"
            if wanted is not TrackerKind.AUTO:
                raise MigrationError(reason) from error
            _log.info("%s", reason)
    if wanted is TrackerKind.AUTO:
        _log.info("dirty pages are found by digests of all memory")
    return Tracking(guest)
