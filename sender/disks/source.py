"""Send the disks as a source: choose how they are tracked, and command their process."""

from __future__ import annotations

import logging

from ...guest.base import Guest
from ...guest.disks.marks import DiskMarks
from ...guest.errors import MigrationError
from ...guest.parts import DeviceState
from ...guest.tracking.errors import TrackingError
from ...protocol import events
from ...protocol.section_events import DiskProgress, EndOfDisks
from ...protocol.wire.block import SECTION_NAME, SECTION_VERSION
from ...protocol.wire.marks import SectionType
from ...protocol.writer import StreamWriter
from ...transport.compression import Compression
from ...transport.counters import Counters
from ...transport.crew import Crew
from ...transport.process import Child, preload, send_fd, send_message
from ...transport.settings import Disks, TrackerKind
from .. import stream
from ..exchange import RoundSent
from ..processes import Processes
from ..sources import StartRound
from .process import DISK_COUNTERS, RING_SLOT_SIZE, RING_SLOTS, DiskSetup, run_disks

preload("vmferry.sender.disks.process")

_log = logging.getLogger(__name__)


class DiskSource:
    """The disks of the guest, except those that it can only read.

    `wanted` says how much of them; chunks of zeros have no data with `zero_blocks`.
    """

    def __init__(
        self,
        guest: Guest,
        processes: Processes,
        crew: Crew,
        compression: Compression | None,
        *,
        wanted: Disks,
        zero_blocks: bool,
    ) -> None:
        self._guest = guest
        self._processes = processes
        self._crew = crew
        self._compression = compression
        self._wanted = wanted
        self._zero_blocks = zero_blocks
        self._disks = tuple(disk for disk in guest.disks if not disk.read_only)
        self._ring = processes.add_ring(RING_SLOTS, RING_SLOT_SIZE)
        self._marks: DiskMarks | None = None
        self._child: Child | None = None
        self._section_id = 0
        self._counters = Counters.create(DISK_COUNTERS)

    @property
    def total(self) -> int:
        """Return the size of all disks that are sent."""
        return disk_bytes(self._guest)

    @property
    def scanned(self) -> int:
        """Return how many bytes all rounds have gone over so far."""
        return self._counters["scanned"]

    @property
    def found(self) -> int:
        """Return the size of the chunks that all rounds have sent so far."""
        return self._counters["found"]

    def pending(self) -> int | None:
        """Return the size of the marked chunks, or None if only digests would tell."""
        if self._marks is not None:
            return self._marks.pending()
        return None if self._guest.running and self._disks else 0

    @property
    def on_wire(self) -> int:
        """Return the bytes of all records so far, before any compression."""
        return self._counters["on_wire"]

    def prepare(self, tracker: TrackerKind) -> None:
        """Choose how changes of the disks are found: by the guest's marks, if it sets any.

        Raises MigrationError if the disks cannot be sent as it is wanted.
        """
        if self._wanted is Disks.TOP and self._disks:
            raise MigrationError(
                f"{self._disks[0].path}: a raw image without a backing image, so nothing tells what"
                " lies above that; send all of it (disks: all, blk without inc)"
            )
        if not self._guest.running or tracker is TrackerKind.DIGESTS:
            return
        try:
            self._marks = self._guest.mark_disk_writes()
        except TrackingError as error:
            _log.info("the disks are tracked by digests: %s", error)

    def start(self, state: DeviceState) -> bytes:
        """Start the process that reads the disks, and return the piece that begins the section."""
        self._section_id = stream.free_ids(state)[0]
        setup = DiskSetup(
            tuple((disk.name, disk.size or 0, disk.path) for disk in self._disks),
            self._section_id,
            self._counters,
            self._processes.sent_counters,
            self._processes.limits,
            self._guest.running,
            self._marks,
            self._zero_blocks,
            self._compression,
        )
        self._child = self._crew.start("vmferry-disks", run_disks, (setup, self._ring))
        for disk in self._disks:
            send_fd(self._child.connection, disk.fd)
        self._crew.wait_for(str)
        return self._piece(SectionType.START)

    def iterate(self, command: StartRound) -> None:
        """Have the process send what changed."""
        assert self._child is not None
        send_message(self._child.connection, command)
        self._crew.wait_for(RoundSent)

    def complete(self) -> bytes:
        """Return the piece that ends the section."""
        return self._piece(SectionType.END, DiskProgress(0, 100))

    def _piece(self, kind: SectionType, *records: events.Event) -> bytes:
        head, tail = stream.around(kind, self._section_id, SECTION_NAME, SECTION_VERSION)
        return head + b"".join(map(StreamWriter().write, (*records, EndOfDisks(0)))) + tail

    def close(self) -> None:
        """Release what was shared with the process, which has ended."""
        self._counters.close()
        if self._marks is not None:
            self._marks.close()


def disk_bytes(guest: Guest) -> int:
    """Return the size of the guest's disks, except those that it can only read."""
    return sum(disk.size or 0 for disk in guest.disks if not disk.read_only)
