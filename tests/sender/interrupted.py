"""Parts of a worker that let the guest write at a chosen moment, for tests of laws 1 and 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from vmferry.sender.chunks import Chunk
from vmferry.sender.deltas import Deltas
from vmferry.sender.outlet import Pace
from vmferry.sender.page_writer import Numbers, Pages
from vmferry.sender.record_writer import RecordWriter
from vmferry.sender.sinks import Sink
from vmferry.transport.counters import Counters


class Moment:
    """A moment that comes again and again, at which something is to happen once."""

    def __init__(self) -> None:
        self._deed: Callable[[], object] | None = None

    def then(self, deed: Callable[[], object]) -> None:
        """Do this when the moment comes next."""
        self._deed = deed

    def __call__(self) -> None:
        deed, self._deed = self._deed, None
        if deed is not None:
            deed()


class InterruptedWriter(RecordWriter):
    """A writer of records, with moments before pages are copied, and behind.

    `with_room`: differences of copies are about to be written, or pages to be copied.
    """

    def __init__(self, sink: Sink, section_id: int | None) -> None:
        super().__init__(sink, section_id)
        self.before, self.with_room, self.behind = Moment(), Moment(), Moment()

    def zero(self, chunk: Chunk, indexes: Numbers) -> None:
        self.before()
        super().zero(chunk, indexes)
        self.behind()

    def plain(self, chunk: Chunk, indexes: Numbers, *, kept: bool) -> Pages | None:
        self.before()
        pages = super().plain(chunk, indexes, kept=kept)
        self.behind()
        return pages

    def room(self, size: int) -> npt.NDArray[np.uint8]:
        self.with_room()
        return super().room(size)


class InterruptedDeltas(Deltas):
    """An encoder of differences with a moment before it copies pages."""

    def __init__(self, writer: RecordWriter, page_size: int, counters: Counters) -> None:
        super().__init__(writer, page_size, counters)
        self.before = Moment()

    def send(self, chunk: Chunk, indexes: Numbers, number: int) -> tuple[Numbers, Numbers, Pages]:
        self.before()
        return super().send(chunk, indexes, number)


class InterruptedPace(Pace):
    """A pace with moments before and behind each piece that is sent."""

    def __init__(self, stop_fd: int, counters: Counters, limit: Callable[[], int | None]) -> None:
        super().__init__(stop_fd, counters, limit)
        self.before, self.behind = Moment(), Moment()

    @contextmanager
    def sending(self, count: int) -> Iterator[None]:
        self.before()
        with super().sending(count):
            yield
        self.behind()
