"""Hold received bytes until their pages are in guest RAM: in ring slots, or in one buffer.

A slot begins with a table of runs of pages, which the transport process made and checked. Behind it
are the bytes as they were read from the channel.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..protocol.events import PageRun, RamBlock, XbzrleRun
from ..protocol.pages.runs import is_run
from ..protocol.wire.marks import DEFAULT_PAGE_SIZE
from ..transport.counters import Counters
from ..transport.ring import Ring, RingWriter
from ..transport.shared import SharedFd, wait_readable

RUN = np.dtype(
    [
        ("offset", "<u8"),
        ("position", "<u4"),
        ("count", "<u4"),
        ("block", "<u2"),
        ("fill", "u1"),
        ("kind", "u1"),
        ("contiguous", "u1"),
        ("reserved", "u1", 3),
        ("stream_offset", "<u8"),
    ]
)
"""Table row: a run of records of one RAM block.

`position` is the place in the slot of the first page (plain), fill byte (zero) or encoding
(XBZRLE); the others follow, each behind its own header. `stream_offset` is the offset of that
encoding in the stream, for errors.
"""

ZERO, PLAIN, XBZRLE = range(3)
"""Kinds of runs."""

Run: TypeAlias = PageRun | XbzrleRun

TABLE_RUNS = 1024
TABLE_BYTES = TABLE_RUNS * RUN.itemsize
DATA_START = TABLE_BYTES + (128 << 10)
"""Start of the received bytes; before it is room for an incomplete record of the last slot."""
DATA_BYTES = (2 << 20) + (128 << 10)
SLOT_SIZE = DATA_START + DATA_BYTES

SLOT_RUNS = 1
"""Ring slot kind: apply the runs of the table; the slot's tag is their number."""


class Slots(Protocol):
    """A destination for received bytes and their runs; one slot is open at a time."""

    def set_blocks(self, blocks: tuple[RamBlock, ...], page_size: int) -> None:
        """Set the RAM blocks and their page size."""

    def acquire(self) -> npt.NDArray[np.uint8]:
        """Return an empty slot. Raises EOFError when the coordinator is gone."""

    def publish(self, runs: list[Run], slot: npt.NDArray[np.uint8], start: int, end: int) -> None:
        """Have these runs, whose records are in bytes `start` to `end` of the slot, applied.

        `slot` may be any array with the layout of a slot; one that was not acquired costs a copy.
        """

    def barrier(self) -> None:
        """Wait until everything published was applied."""


class DirectSlots:
    """One buffer, whose runs `apply` puts into guest RAM at once."""

    def __init__(self, apply: Callable[[npt.NDArray[np.uint8], int], None]) -> None:
        self._slot = np.empty(SLOT_SIZE, np.uint8)
        self._apply = apply
        self._page_size = DEFAULT_PAGE_SIZE

    def set_blocks(self, blocks: tuple[RamBlock, ...], page_size: int) -> None:  # noqa: ARG002
        """Record the RAM blocks, of which only the page size matters here."""
        self._page_size = page_size

    def acquire(self) -> npt.NDArray[np.uint8]:
        """Return the buffer."""
        return self._slot

    def publish(self, runs: list[Run], slot: npt.NDArray[np.uint8], start: int, end: int) -> None:  # noqa: ARG002
        """Put these runs into guest RAM at once."""
        _write_table(runs, slot, start, self._page_size)
        self._apply(slot, len(runs))

    def barrier(self) -> None:
        """Do nothing: everything published was applied."""


class RingSlots:
    """The workers' rings in turn; a barrier keeps one page from being in flight twice."""

    def __init__(
        self,
        connection: Connection,
        rings: tuple[Ring, ...],
        applied: tuple[Counters, ...],
        progress_fd: SharedFd,
    ) -> None:
        self._connection = connection
        self._writers = [RingWriter(ring) for ring in rings]
        self._applied = applied
        self._progress_fd = progress_fd.fileno()
        self._published = 0
        self._next = 0
        self._in_flight: list[npt.NDArray[np.bool_]] = []
        self._page_size = DEFAULT_PAGE_SIZE
        self._open: npt.NDArray[np.uint8] | None = None

    def set_blocks(self, blocks: tuple[RamBlock, ...], page_size: int) -> None:
        """Set the RAM blocks and their page size."""
        self._page_size = page_size
        self._in_flight = [np.zeros(block.length // page_size, np.bool_) for block in blocks]

    def acquire(self) -> npt.NDArray[np.uint8]:
        """Wait for an empty slot of the worker whose turn it is, and return it."""
        if self._open is None:
            writer = self._writers[self._next]
            while (view := writer.try_acquire()) is None:
                self._wait(writer.free_fd)
            self._open = np.frombuffer(view, np.uint8)
        return self._open

    def publish(self, runs: list[Run], slot: npt.NDArray[np.uint8], start: int, end: int) -> None:
        """Hand these runs to the worker whose turn it is; wait first if a page is in flight."""
        if len(self._writers) > 1:
            self._keep_order(runs)
        target = self.acquire()
        if target is not slot:
            target[start:end] = slot[start:end]
        _write_table(runs, target, start, self._page_size)
        self._writers[self._next].publish(end, SLOT_RUNS, len(runs))
        self._open = None
        self._published += 1
        self._next = (self._next + 1) % len(self._writers)

    def _keep_order(self, runs: list[Run]) -> None:
        numbers = [(run.offsets // np.uint64(self._page_size)).astype(np.intp) for run in runs]
        seen = zip(runs, numbers, strict=True)
        if any(self._in_flight[run.block_index][which].any() for run, which in seen):
            self.barrier()
        for run, which in zip(runs, numbers, strict=True):
            self._in_flight[run.block_index][which] = True

    def barrier(self) -> None:
        """Wait until the workers have applied everything published."""
        while sum(counters["slots"] for counters in self._applied) < self._published:
            self._wait(self._progress_fd)
            os.eventfd_read(self._progress_fd)
        for pages_of_block in self._in_flight:
            pages_of_block[:] = False

    def _wait(self, fd: int) -> None:
        if self._connection.fileno() in wait_readable([fd, self._connection.fileno()]):
            # No command arrives while slots move: the coordinator is gone or has given up.
            raise EOFError


def _write_table(runs: list[Run], slot: npt.NDArray[np.uint8], start: int, page_size: int) -> None:
    table = slot[:TABLE_BYTES].view(RUN)
    for row, run in enumerate(runs):
        if isinstance(run, XbzrleRun):
            kind, fill = XBZRLE, 0
            position, place = int(run.starts[0]), run.encoding_offset(0)
        else:
            kind = ZERO if run.data is None else PLAIN
            position, fill, place = run.position, run.fill, 0
        table[row] = (
            int(run.offsets[0]),
            start + position,
            len(run.offsets),
            run.block_index,
            fill,
            kind,
            is_run(run.offsets, page_size),
            0,
            place,
        )
