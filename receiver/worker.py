"""One process of the decode-and-apply pool: put the pages of a ring slot into guest RAM.

The transport process has found and checked the runs. Only XBZRLE is interpreted and checked here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..guest.mapping import is_hole, map_block, populate_present
from ..guest.parts import RamBlock
from ..guest.zero import zero_mask
from ..protocol.errors import StreamError
from ..protocol.pages import xbzrle
from ..protocol.wire.ram import RECORD_HEADER_SIZE
from ..transport.counters import Counters
from ..transport.crew import Failed
from ..transport.process import receive_fd, send_message
from ..transport.ring import Ring, RingReader
from ..transport.shared import SharedFd, wait_readable
from ..transport.spill import FileError
from .fresh_pages import FreshPages
from .slots import PLAIN, RUN, TABLE_BYTES, XBZRLE, ZERO

FILL_PAGES = 256
"""Zero pages that are compared at once; they fit a processor cache."""

WORKER_COUNTERS = ("slots", "normal", "duplicate", "xbzrle")


@dataclass(frozen=True)
class WorkerSetup:
    """The setup of a worker. `progress_fd` is an eventfd that is raised after each slot."""

    ring: Ring
    counters: Counters
    progress_fd: SharedFd


@dataclass(frozen=True)
class MapBlocks:
    """Command: map these RAM blocks; their descriptors follow, one each."""

    layout: tuple[dict[str, Any], ...]

    def receive(self, connection: Connection) -> tuple[RamBlock, ...]:
        """Return the blocks with the descriptors that follow this command."""
        return tuple(RamBlock(fd=receive_fd(connection), **fields) for fields in self.layout)


class BlockWriter:
    """A writer of runs of pages into one RAM block, whose bytes are `flat`."""

    def __init__(self, block: RamBlock) -> None:
        self.flat = flat = map_block(block)
        populate_present(flat, block)
        self._block = block
        self._ram = flat.reshape(-1, block.page_size)
        self._pages = self._ram.view(f"V{block.page_size}")[:, 0]
        self.fresh = FreshPages(block)
        """The record of pages that hold nothing yet."""

    def apply(self, run: np.void, data: npt.NDArray[np.uint8]) -> None:
        """Put one run, whose records are in `data`, into RAM."""
        page_size, count = self._block.page_size, int(run["count"])
        position = int(run["position"])
        first = int(run["offset"]) // page_size
        if run["kind"] == XBZRLE:
            self._change(run, first, position, data)
            return
        plain = run["kind"] == PLAIN
        if plain and self._write_fresh(run, first, data):
            return
        stride = RECORD_HEADER_SIZE + (page_size if plain else 1)
        target: slice | npt.NDArray[np.intp] = slice(first, first + count)
        if not run["contiguous"]:
            target = self._targets(first, count, position, stride, data)
        if plain:
            self.fresh.written(target)
            self._pages[target] = np.ndarray(
                (count,), f"V{page_size}", data, offset=position, strides=(stride,)
            )
        else:
            self.fill(target, int(run["fill"]))

    def _write_fresh(self, run: np.void, first: int, data: npt.NDArray[np.uint8]) -> bool:
        """Put a run of plain pages into memory that is not there yet; False if some of it is."""
        count, size = int(run["count"]), self._block.page_size
        if not run["contiguous"] or not self.fresh.all_fresh(first, count):
            return False
        stride, start, view = RECORD_HEADER_SIZE + size, int(run["position"]), data.data
        places = range(start, start + count * stride, stride)
        return self.fresh.write(first, [view[place : place + size] for place in places])

    def _targets(
        self, first: int, count: int, position: int, stride: int, data: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.intp]:
        """Return page numbers; all but the first are read from the headers of the records."""
        targets = np.empty(count, np.intp)
        targets[0] = first
        headers: npt.NDArray[np.uint64] = np.ndarray(
            (count - 1,),
            ">u8",
            data,
            offset=position + stride - RECORD_HEADER_SIZE,
            strides=(stride,),
        )
        targets[1:] = headers // np.uint64(self._block.page_size)
        return targets

    def _change(self, run: np.void, first: int, position: int, data: npt.NDArray[np.uint8]) -> None:
        """Parse the records of an XBZRLE run again, check their encodings and apply them."""
        page_size = self._block.page_size
        size = int.from_bytes(data[position - 2 : position].tobytes(), "big")
        addresses, starts, sizes = xbzrle.parse_records(
            data.data, position + size, int(run["count"]) - 1, page_size
        )
        numbers = np.array([first, *(address // page_size for address in addresses)], np.intp)
        places, lengths = np.array([position, *starts], np.intp), np.array([size, *sizes], np.intp)
        try:
            runs = xbzrle.read_runs(data, places, lengths, page_size)
        except xbzrle.XbzrleError as error:
            where = int(run["stream_offset"]) + int(places[error.index]) - position
            raise xbzrle.bad_encoding(error, where) from None
        xbzrle.apply(self._ram, numbers, data, runs)

    def put(self, first: int, pages: npt.NDArray[np.uint8]) -> None:
        """Put neighbouring pages (n, page_size) into RAM, from page `first` on."""
        count = len(pages)
        if self.fresh.all_fresh(first, count) and self.fresh.write(first, [pages.reshape(-1).data]):
            return
        self.fresh.written(slice(first, first + count))
        self._ram[first : first + count] = pages

    def clear(self, numbers: npt.NDArray[np.intp]) -> None:
        """Make pages zero that only this writer writes; those never written are zero."""
        existing = self.fresh.existing(numbers)
        for first in range(0, len(existing), FILL_PAGES):
            self.fill(existing[first : first + FILL_PAGES], 0)

    def fill(self, target: slice | npt.NDArray[np.intp], fill: int) -> None:
        """Fill pages with one byte value, except those that have it already.

        These may be holes, or shared memory, and must not be written.
        """
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
    """The code that applies whole slots; it maps the RAM blocks from descriptors it receives."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._blocks: list[BlockWriter] = []

    def map(self, connection: Connection, command: MapBlocks) -> None:
        """Map the RAM blocks, whose descriptors arrive over `connection`, then answer "ready"."""
        self._blocks = [BlockWriter(block) for block in command.receive(connection)]
        send_message(connection, "ready")

    def apply(self, slot: npt.NDArray[np.uint8], count: int) -> None:
        """Put the first `count` runs of the slot's table into RAM."""
        table = slot[:TABLE_BYTES].view(RUN)[:count]
        for run in table:
            self._blocks[run["block"]].apply(run, slot)
        for name, kind in (("normal", PLAIN), ("duplicate", ZERO), ("xbzrle", XBZRLE)):
            self._counters.add(name, int(table["count"][table["kind"] == kind].sum()))
        self._counters.add("slots", 1)


def run_worker(connection: Connection, setup: WorkerSetup) -> None:
    """Map RAM when commanded and apply slots; raises EOFError when the coordinator is gone."""
    ring = RingReader(setup.ring)
    applier = Applier(setup.counters)
    while True:
        slot = ring.try_take()
        if slot is not None:
            try:
                applier.apply(np.frombuffer(slot.view, np.uint8), slot.tag)
            except StreamError as error:
                send_message(connection, Failed(str(error)))
                return
            except FileError as error:
                send_message(connection, Failed(error.line))
                return
            ring.release()
            os.eventfd_write(setup.progress_fd.fileno(), 1)
        elif connection.fileno() in wait_readable([ring.filled_fd, connection.fileno()]):
            applier.map(connection, connection.recv())
