"""Which pages of a stream arrived, and which are missing: neither sent, nor known to be no memory.

A source sends each page at least once, but for memory that is shared with the destination
(x-ignore-shared), memory that a virtio-mem device has unplugged, and pages that a balloon's free
page hints name; the last are reported here, too, since no stream says which they were. In a
mapped-ram file a page without a place is zero.
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
    """Pages of a RAM block of `total` pages that never arrived; `hint`: where they may be."""

    block: str
    total: int
    ranges: PageRanges
    hint: str = ""

    def describe(self) -> str:
        """Return one line."""
        count, where = self.ranges.count, self.ranges.describe()
        return f"{self.block}: {count} of {self.total} pages never arrived, first at {where}"

    def as_json(self) -> dict[str, Any]:
        """Keys: block, total (pages of the block), pages (that are missing), first_ranges (each
        start and end, offsets in the block)."""
        return {"block": self.block, "total": self.total, **self.ranges.as_json()}


class Arrivals:
    """Takes the events of one stream, and knows in the end what is missing.

    Memory: one bit for each page of RAM, and the state of virtio-mem devices.
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
        """Note the next event. Raises CommandError where RAM is too large to keep track of."""
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
        """The names of blocks that were left out as shared: not one of their pages arrived."""
        return self._absent

    def missing(self) -> list[MissingPages]:
        """Return the blocks of which pages are missing. Raises StreamError where the state of a
        virtio-mem device is not as the stream describes it."""
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
        """Return what may have become of missing pages, to be put behind that they are missing;
        empty where the stream does not say anything of it."""
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
        """Return which pages (n,) of a block are plugged in; None: all, or it is not known."""
        try:
            plugged = self._plugged(block)
        except StreamError:
            # The device is damaged.
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
        """What a postcopy discards has to arrive again."""
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
        """What a virtio-mem device says of the block; None: it is none's, or all is plugged in."""
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
