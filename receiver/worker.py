"""One process of the decode-and-apply pool: puts the pages of a ring slot into guest RAM.

The transport process has found and checked the runs; nothing from the wire is interpreted here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..guest.base import RamBlock, is_hole, map_block, populate_present
from ..guest.zero import zero_mask
from ..transport.counters import Counters
from ..transport.process import receive_fd, send_message
from ..transport.ring import Ring, RingReader
from ..transport.shared import SharedFd, wait_readable
from .slots import RUN, TABLE_BYTES

HEADER = 8
"""Bytes of a page record before its data, where the record continues a block."""

FILL_PAGES = 256
"""Zero pages looked at at once: what fits a cache."""

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
        populate_present(flat, block)
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
        """Pages that are so already are not written: they may be holes, or shared."""
        if isinstance(target, np.ndarray):
            stale = (self._ram[target] != fill).any(axis=1)
            self._ram[target[stale]] = fill
            return
        size = self._block.page_size
        if fill or not is_hole(self._block, target.start * size, target.stop * size):
            for first in range(target.start, target.stop, FILL_PAGES):
                pages = self._ram[first : min(first + FILL_PAGES, target.stop)]
                stale = ~zero_mask(pages) if fill == 0 else np.ones(len(pages), np.bool_)
                if stale.any():
                    pages[stale] = fill


class Applier:
    """Applies the runs of whole slots. `connection` brings the descriptors of the RAM blocks."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._blocks: list[BlockWriter] = []

    def map(self, connection: Connection, command: MapBlocks) -> None:
        """Map the RAM blocks, then answer "ready"."""
        blocks = [RamBlock(fd=receive_fd(connection), **fields) for fields in command.layout]
        self._blocks = [BlockWriter(block) for block in blocks]
        send_message(connection, "ready")

    def apply(self, slot: npt.NDArray[np.uint8], count: int) -> None:
        """Put the first `count` runs of the slot's table into RAM."""
        normal = duplicate = 0
        for run in slot[:TABLE_BYTES].view(RUN)[:count]:
            self._blocks[run["block"]].apply(run, slot)
            if run["plain"]:
                normal += int(run["count"])
            else:
                duplicate += int(run["count"])
        self._counters.add("normal", normal)
        self._counters.add("duplicate", duplicate)
        self._counters.add("slots", 1)


def run_worker(connection: Connection, setup: WorkerSetup) -> None:
    """Process entry: map RAM when told, apply slots, until the coordinator goes away (EOFError)."""
    ring = RingReader(setup.ring)
    applier = Applier(setup.counters)
    while True:
        slot = ring.try_take()
        if slot is not None:
            applier.apply(np.frombuffer(slot.view, np.uint8), slot.tag)
            ring.release()
            os.eventfd_write(setup.progress_fd.fileno(), 1)
        elif connection.fileno() in wait_readable([ring.filled_fd, connection.fileno()]):
            applier.map(connection, connection.recv())
