"""Tracks which pages of a stream arrived, and which are missing although they are memory.

A source sends each page at least once, except for memory that is shared with the destination
(x-ignore-shared), memory that a virtio-mem device has unplugged, and pages in a balloon's free page
hints. The last are reported as missing, too, since no stream lists them. In a mapped-ram file, a
page that is not present is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...protocol import events
from ...protocol.devices import virtio_mem
from ...protocol.devices.fields import Decoder
from ...protocol.errors import StreamError
from ...protocol.wire.commands import read_command
from ...protocol.wire.marks import CommandType
from ..sources.stream_events import Found
from .page_ranges import PageRanges
from .page_set import PageSet


@dataclass(frozen=True)
class MissingPages:
    """Pages of a RAM block of `total` pages that never arrived; `hint` says where they may be."""

    block: str
    total: int
    ranges: PageRanges
    hint: str = ""

    def describe(self) -> str:
        """Return a description for users, in one line."""
        count, where = self.ranges.count, self.ranges.describe()
        return f"{self.block}: {count} of {self.total} pages never arrived, first at {where}"

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys block, total (pages of the block), pages (number
        missing), first_ranges (each a start and an end, offsets in the block).
        """
        return {"block": self.block, "total": self.total, **self.ranges.as_json()}


class Arrivals:
    """The record of which pages arrived in one stream; at its end, it lists the missing ones.

    Memory use is one bit for each page of RAM, plus the state of virtio-mem devices.
    """

    def __init__(self) -> None:
        self._multifd = False
        self._content = False
        self._channels = False
        self._page_size = 0
        self._shift = np.uint64(0)
        self._blocks: dict[str, events.RamBlock] = {}
        self._pages: dict[str, PageSet] = {}
        self._absent: set[str] = set()
        self._devices: list[events.DeviceSection] = []
        self._description: events.Description | None = None

    def take(self, event: Found) -> None:
        """Record the next event. Raises CommandError if RAM has more pages than can be tracked."""
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            self._note(event)
        elif isinstance(event, events.RamBlocks):
            self._list(event)
        elif isinstance(event, events.DeviceSection):
            if virtio_mem.path_of(event) is not None:
                self._devices.append(event)
        elif isinstance(event, events.Command):
            self._discard(event)
        elif isinstance(event, events.MultifdFlush):
            self._multifd = True
        elif isinstance(event, events.Configuration):
            self._multifd = "multifd" in (event.capabilities or ())
        elif isinstance(event, events.Description):
            self._description = event

    @property
    def absent(self) -> set[str]:
        """Return the names of blocks that were left out as shared: none of their pages arrived."""
        return self._absent

    def missing(self) -> list[MissingPages]:
        """Return the blocks that have missing pages.

        Raises StreamError if the state of a virtio-mem device does not match its description.
        """
        found = []
        for name, pages in self._pages.items():
            block = self._blocks[name]
            if name in self._absent or block.mapped is not None:
                continue
            ranges = self._missing_of(pages, self._plugged(block))
            if ranges.count:
                found.append(MissingPages(name, pages.count, ranges, self.hint()))
        return found

    def hint(self) -> str:
        """Return a suffix for the message on missing pages that says what may have caused it, or
        "".
        """
        if self._channels:
            return ""
        if self._multifd:
            return "; they went over other channels (multifd): give each by --channel FILE"
        if not self._content:
            return (
                "; if this is the main channel of a multifd migration, give each other by --channel"
            )
        return ""

    def plugged(self, block: events.RamBlock) -> npt.NDArray[np.bool_] | None:
        """Return which pages (n,) of a block are plugged in, or None if all are or if it is
        unknown.
        """
        try:
            plugged = self._plugged(block)
        except StreamError:
            # The device state is damaged, so this is unknown.
            return None
        if plugged is None:
            return None
        places = np.arange(0, block.length, self._page_size)
        return plugged.plugged[places // plugged.block_size]

    def _list(self, listed: events.RamBlocks) -> None:
        self._page_size = listed.page_size
        self._shift = np.uint64(listed.page_size.bit_length() - 1)
        self._blocks = {block.name: block for block in listed.blocks}
        self._absent = {block.name for block in listed.blocks if block.may_be_absent}
        for name, block in self._blocks.items():
            self._pages[name] = PageSet(block.length // listed.page_size)

    def _note(self, run: events.PageRun | events.EncodedRun) -> None:
        name = run.block.name
        self._absent.discard(name)
        self._channels |= isinstance(run, events.MultifdRun)
        self._content |= not isinstance(run, events.PageRun) or run.data is not None
        self._pages[name].add((run.offsets >> self._shift).astype(np.intp))

    def _discard(self, command: events.Command) -> None:
        """Remove the pages that a postcopy discards: they have to arrive again."""
        if command.command != CommandType.POSTCOPY_RAM_DISCARD or not self._page_size:
            return
        said = read_command(command.command, command.data, command.offset)
        pages = self._pages[said.block.decode()]
        for lost in said.ranges:
            end = -(-(lost.start + lost.length) // self._page_size)
            pages.remove(lost.start // self._page_size, end)

    def _missing_of(self, pages: PageSet, plugged: virtio_mem.PluggedMemory | None) -> PageRanges:
        ranges = PageRanges(self._page_size)
        for start, end, mask in pages.absent():
            if plugged is None and mask is None:
                ranges.add_all(start * self._page_size, end * self._page_size)
                continue
            absent = np.ones(end - start, np.bool_) if mask is None else mask
            if plugged is not None:
                places = np.arange(start, end) * self._page_size
                absent &= plugged.plugged[places // plugged.block_size]
            ranges.add(start * self._page_size, absent)
        return ranges

    def _plugged(self, block: events.RamBlock) -> virtio_mem.PluggedMemory | None:
        """Return the state of the block's virtio-mem device, or None if it has none or all is
        plugged in.
        """
        found = (plugged for plugged in self._told(block) if plugged is not None)
        return next(found, None)

    def _told(self, block: events.RamBlock) -> Iterator[virtio_mem.PluggedMemory | None]:
        devices: Sequence[events.DeviceSection] = [
            section
            for section in self._devices
            if block.name.startswith(f"{virtio_mem.path_of(section)}/")
        ]
        if devices:
            decoder = Decoder(self._description)
            for section in devices:
                yield virtio_mem.read_state(section, block.length, decoder)
