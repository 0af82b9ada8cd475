"""The way of a stream from a QEMU over the link of a relay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ...guest.qemu.monitor import Monitor
from ...relay.parameters import RelayParameters
from ...sender.figures import CompressionFigures
from ...transport.compression import parse_compression
from ...transport.crew import Crew, CrewError
from ...transport.process import Child
from .carrying import Passed, new_ends
from .link import LinkSetup, Note, run_link
from .route import NAME, Route, Wait


class Linked(Route):
    """The link to a far relay; `note` is called with a line when something happens to it."""

    def __init__(self, parameters: RelayParameters, note: Callable[[str], None]) -> None:
        self._parameters = parameters
        self._note = note
        self._ends, self._theirs = new_ends()
        self._crew = Crew(self._ends.stop.fileno(), lambda: None)
        self._child: Child | None = None
        self._reason = ""

    def open(self, monitor: Monitor, wait: Wait) -> str:
        """Connect to the far relay, and give QEMU its end."""
        del wait
        setup = LinkSetup(self._ends, self._parameters)
        self._child = self._crew.start("vmferry-link", run_link, (setup,))
        while self._crew.wait_for((str, Note)) != "ready":
            continue
        # Whoever keeps QEMU's connection has to be able to break it.
        self._ends.stream.close()
        monitor.give(NAME, self._theirs.fileno())
        self._theirs.close()
        return f"fd:{NAME}"

    def figures(self) -> CompressionFigures | None:
        """Return what compression has done so far; None without it."""
        compression = parse_compression(self._parameters.compress)
        if compression is None:
            return None
        counters = self._ends.counters
        sizes = (counters["raw_bytes"], counters["compressed_bytes"])
        return CompressionFigures(str(compression), (counters["level"],), *sizes)

    def fds(self) -> list[int]:
        """Return the descriptors of the process: its reports, and its death."""
        return [] if self._child is None else [self._child.connection.fileno(), self._child.pidfd]

    @property
    def log(self) -> str:
        """Return why the link failed, or in words where the destination says why it did."""
        return self._reason or super().log

    def look(self) -> None:
        """Take the reports of the process."""
        if self._child is None:
            return
        try:
            report = self._crew.next_report((), time.monotonic())
        except CrewError as error:
            # The near relay's guardian keeps QEMU waiting until it is known who has the guest.
            self._child, self._reason = None, str(error)
            self._note(self._reason)
            return
        if isinstance(report, Note):
            self._note(report.line)
        elif isinstance(report, Passed):
            self._child = None

    def completed(self) -> None:
        """Wait until both ends of the link know that the migration is over."""
        while self._child is not None:
            try:
                report = self._crew.wait_for((Passed, Note))
            except CrewError:
                # The destination has said that it has the guest, so the link has done its work.
                break
            if isinstance(report, Passed):
                break
        self._child = None
        self._crew.stop()
        self._ends.close()

    def abort(self) -> None:
        """End the link; the near relay then knows whether QEMU may take its guest back."""
        self._child = None
        if self._ends.stop.fileno() >= 0:
            os.eventfd_write(self._ends.stop.fileno(), 1)
        self._theirs.close()
        self._crew.stop()
        self._ends.close()
