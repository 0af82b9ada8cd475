"""Choose how a migration finds dirty pages, and hold what that needs for as long as it lasts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..guest.base import Guest, RamBlock
from ..guest.errors import MigrationError
from ..guest.tracking.errors import TrackingError
from ..guest.tracking.marks import WriteMarks, marked_bytes
from ..transport.settings import TrackerKind

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracking:
    """The way of one migration to find dirty pages; `marks` are the kernel's, if it has them."""

    kind: TrackerKind
    marks: WriteMarks | None = None

    @property
    def addresses(self) -> tuple[int, ...] | None:
        """Return the address of each block in the guest's process, or None without marks."""
        return None if self.marks is None else self.marks.addresses

    def fds(self, blocks: Sequence[RamBlock]) -> list[int]:
        """Return the descriptors that a process which scans these blocks needs, in this order."""
        fds = [block.fd for block in blocks]
        return fds if self.marks is None else [*fds, self.marks.pagemap]

    def dirty_bytes(self, blocks: Sequence[RamBlock]) -> int | None:
        """Return how many bytes are dirty now, or None if only reading all pages would tell."""
        if self.marks is None:
            return None
        return marked_bytes(self.marks, [block.length for block in blocks])

    def close(self) -> None:
        """Stop marking the guest's writes."""
        if self.marks is not None:
            self.marks.close()


def begin_tracking(guest: Guest, wanted: TrackerKind) -> Tracking:
    """Return the best way that is possible, or the one that is wanted. Raises MigrationError."""
    if wanted is TrackerKind.DIGESTS:
        return Tracking(wanted)
    try:
        return Tracking(TrackerKind.USERFAULTFD, guest.mark_writes())
    except TrackingError as error:
        if wanted is not TrackerKind.AUTO:
            raise MigrationError(
                f"dirty pages cannot be tracked by {wanted.value}: {error}"
            ) from error
        _log.info("dirty pages are found by digests of all memory, because %s", error)
        return Tracking(TrackerKind.DIGESTS)
