"""Rebuilds a guest from its stream: its RAM in anonymous memory, and its devices."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack

from ...protocol import events
from ...protocol.wire.marks import DEFAULT_PAGE_SIZE
from ..console.failure import CommandError, named
from ..sources.source import Left
from ..sources.stream_events import Behind, Found
from .arrivals import Arrivals
from .block_file import BlockFile, Run, check_run


class RebuildError(CommandError):
    """Raised if the requested RAM cannot be rebuilt or compared; the message is one line."""


def new_image(length: int, page_size: int) -> BlockFile:
    """Return a RAM block in anonymous memory, all zero; the caller has to close its descriptor."""
    fd = os.memfd_create("vmferry-image", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, length)
    except OSError:
        os.close(fd)
        raise
    return BlockFile(fd, length, page_size)


class RebuiltGuest:
    """A guest that is rebuilt from a stream.

    `blocks` has all RAM blocks by name; `arrivals` tracks which of their pages arrived. `images`
    has the content of the blocks in `wanted` (None: all), closed with `stack`. `unread` names
    sections that cannot be decoded; `unsplit` is the number of bytes of device state that cannot be
    split into sections; `behind` counts the bytes after the stream.
    """

    def __init__(self, stack: ExitStack, wanted: Collection[str] | None = None) -> None:
        self.page_size = DEFAULT_PAGE_SIZE
        self.blocks: dict[str, events.RamBlock] = {}
        self.arrivals = Arrivals()
        self.images: dict[str, BlockFile] = {}
        self.unread: set[str] = set()
        self.unsplit = 0
        self.behind: Left | None = None
        self.configuration: events.Configuration | None = None
        self.devices: list[events.DeviceSection] = []
        self.description: events.Description | None = None
        self._stack = stack
        self._wanted = wanted
        self._section = ""

    def take(self, event: Found) -> None:
        """Process the next event. Raises RebuildError if the stream lacks a requested block."""
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            self._take_pages(event)
        elif isinstance(event, events.Configuration):
            self.configuration = event
        elif isinstance(event, events.RamBlocks):
            self._list_blocks(event)
        elif isinstance(event, events.DeviceSection):
            self.devices.append(event)
        elif isinstance(event, events.Description):
            self.description = event
        elif isinstance(event, events.UnsplitDevices):
            self.unsplit = len(event.data)
        elif isinstance(event, events.IterativeSection):
            self._section = event.name
        elif isinstance(event, events.OpaquePiece):
            self.unread.add(self._section)
        elif isinstance(event, Behind):
            self.behind = event.left
        self.arrivals.take(event)

    @property
    def absent(self) -> set[str]:
        """Return the names of blocks that were left out as shared."""
        return self.arrivals.absent

    def check_blocks(self, wanted: Iterable[str]) -> None:
        """Raise RebuildError if the stream does not contain a block of one of these names."""
        for name in wanted:
            if name not in self.blocks:
                names = ", ".join(self.blocks) or "none"
                raise RebuildError(f"no RAM block {name!r} in the stream; it has {names}")
            if name in self.absent:
                raise RebuildError(absent_message(name))

    def _list_blocks(self, listed: events.RamBlocks) -> None:
        self.page_size = listed.page_size
        self.blocks = {block.name: block for block in listed.blocks}
        self.check_blocks(self._wanted or ())
        for name, block in self.blocks.items():
            if self._wanted is None or name in self._wanted:
                with named(f"RAM block {name}, in memory"):
                    self.images[name] = new_image(block.length, self.page_size)
                self._stack.callback(os.close, self.images[name].fd)

    def _take_pages(self, run: Run) -> None:
        """Write a run to its block, or only check its encoding if the block is not requested."""
        name = run.block.name
        image = self.images.get(name)
        if image is not None:
            with named(f"RAM block {name}, in memory"):
                image.take(run)
        else:
            check_run(run, self.page_size)


def absent_message(name: str) -> str:
    """Return the one-line error message for a shared block that is not in the stream."""
    return f"RAM block {name} is not in the stream: it is shared (x-ignore-shared)"


def rebuild(
    found: Iterable[Found], stack: ExitStack, wanted: Collection[str] | None = None
) -> RebuiltGuest:
    """Return the guest that these events build. Raises RebuildError, and any error that `found`
    raises.
    """
    guest = RebuiltGuest(stack, wanted)
    for event in found:
        guest.take(event)
    guest.check_blocks(wanted or ())
    for name in guest.absent:
        guest.images.pop(name, None)
    return guest
