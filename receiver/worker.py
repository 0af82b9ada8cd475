"""One process of the decode-and-apply pool: puts the pages of a ring slot into guest RAM.

A slot begins with a table of runs, made and checked by the transport process; behind it stand the
bytes as they came from the channel. Nothing from the wire is interpreted here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..guest.base import RamBlock, map_block, populate_present
from ..guest.zero import zero_mask
from ..transport.counters import Counters
from ..transport.process import receive_fd
from ..transport.ring import Ring, RingReader, Slot, wait_readable
from ..transport.shared import SharedFd

RUN = np.dtype(
    [
        ("offset", "<u8"),
        ("position", "<u4"),
        ("count", "<u4"),
        ("block", "<u2"),
        ("fill", "u1"),
        ("plain", "u1"),
        ("contiguous", "u1"),
        ("reserved", "u1", 3),
    ]
)
"""A run of records of one block. `position`: where in the slot the first page (plain) or fill byte
(zero) stands; the others follow at the stride of their records, each behind its own header."""

TABLE_RUNS = 1024
TABLE_BYTES = TABLE_RUNS * RUN.itemsize
HEADER = 8
"""Bytes of a page record before its data, where the record continues a block."""

SLOT_RUNS = 1
"""Ring slot kind: apply the runs of the table; the slot's tag is their number."""

WORKER_COUNTERS = ("slots", "normal", "duplicate")


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is told at its start. `progress_fd`: eventfd, raised after each slot."""

    ring: Ring
    counters: Counters
    progress_fd: SharedFd


@dataclass(frozen=True)
class MapBlocks:
    """Command: these are the RAM blocks; their descriptors follow, one each."""

    layout: tuple[dict[str, Any], ...]


class BlockWriter:
    """Writes runs of pages into one RAM block."""

    def __init__(self, block: RamBlock) -> None:
        flat = map_block(block)
        populate_present(flat, block, write=True)
        self._block = block
        self._ram = flat.reshape(-1, block.page_size)
        self._pages = self._ram.view(f"V{block.page_size}")[:, 0]

    def apply(self, run: np.void, data: npt.NDArray[np.uint8]) -> None:
        """Put one run, whose records stand in `data`, into RAM."""
        page_size, count = self._block.page_size, int(run["count"])
        stride = HEADER + (page_size if run["plain"] else 1)
        position = int(run["position"])
        first = int(run["offset"]) // page_size
        target: slice | npt.NDArray[np.intp] = slice(first, first + count)
        if not run["contiguous"]:
            target = self._targets(first, count, position, stride, data)
        if run["plain"]:
            self._pages[target] = np.ndarray(
                (count,), f"V{page_size}", data, offset=position, strides=(stride,)
            )
        else:
            self._fill(target, int(run["fill"]))

    def _targets(
        self, first: int, count: int, position: int, stride: int, data: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.intp]:
        """Page numbers, from the headers of the records behind the first."""
        targets = np.empty(count, np.intp)
        targets[0] = first
        headers: npt.NDArray[np.uint64] = np.ndarray(
            (count - 1,), ">u8", data, offset=position + stride - HEADER, strides=(stride,)
        )
        targets[1:] = headers // np.uint64(self._block.page_size)
        return targets

    def _fill(self, target: slice | npt.NDArray[np.intp], fill: int) -> None:
        if fill == 0 and isinstance(target, slice) and self._is_hole(target):
            return
        pages = self._ram[target]
        stale = ~zero_mask(pages) if fill == 0 else np.ones(len(pages), np.bool_)
        if stale.all():
            self._ram[target] = fill
        elif stale.any():
            numbers = np.arange(target.start, target.stop) if isinstance(target, slice) else target
            self._ram[numbers[stale]] = fill

    def _is_hole(self, target: slice) -> bool:
        """Whether the pages were never written in their file, so that reading would allocate."""
        block = self._block
        start = block.file_offset + target.start * block.page_size
        end = block.file_offset + target.stop * block.page_size
        try:
            return bool(os.lseek(block.fd, start, os.SEEK_DATA) >= end)
        except OSError:
            # ENXIO: no data up to the end of the file.
            return True


class Worker:
    """Applies slots as they come."""

    def __init__(self, connection: Connection, setup: WorkerSetup) -> None:
        self._connection = connection
        self._setup = setup
        self._ring = RingReader(setup.ring)
        self._blocks: list[BlockWriter] = []

    def run(self) -> None:
        """Until the coordinator goes away (EOFError)."""
        while True:
            slot = self._ring.try_take()
            if slot is not None:
                self._apply(slot)
                self._ring.release()
                continue
            ready = wait_readable([self._ring.filled_fd, self._connection.fileno()])
            if self._connection.fileno() in ready:
                self._map(self._connection.recv())

    def _map(self, command: MapBlocks) -> None:
        blocks = [RamBlock(fd=receive_fd(self._connection), **fields) for fields in command.layout]
        self._blocks = [BlockWriter(block) for block in blocks]
        self._connection.send("ready")

    def _apply(self, slot: Slot) -> None:
        data = np.frombuffer(slot.view, np.uint8)
        normal = duplicate = 0
        for run in data[:TABLE_BYTES].view(RUN)[: slot.tag]:
            self._blocks[run["block"]].apply(run, data)
            if run["plain"]:
                normal += int(run["count"])
            else:
                duplicate += int(run["count"])
        self._setup.counters.add("normal", normal)
        self._setup.counters.add("duplicate", duplicate)
        self._setup.counters.add("slots", 1)
        os.eventfd_write(self._setup.progress_fd.fileno(), 1)


def run_worker(connection: Connection, setup: WorkerSetup) -> None:
    """Process entry: map RAM when told, apply slots, until the coordinator goes away."""
    Worker(connection, setup).run()
