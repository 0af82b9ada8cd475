"""A guest as its stream builds it: RAM in anonymous memory, and the devices beside it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack

from ...protocol import events
from ..console.failure import CommandError, named
from ..sources.source import Left
from ..sources.stream_events import Behind, Found
from .arrivals import Arrivals
from .block_file import BlockFile, Run, check_run


class RebuildError(CommandError):
    """The RAM that is asked for cannot be rebuilt, or not be compared; one line."""


def new_image(length: int, page_size: int) -> BlockFile:
    """A RAM block in anonymous memory, all zero; its descriptor has to be closed."""
    fd = os.memfd_create("vmferry-image", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, length)
    except OSError:
        os.close(fd)
        raise
    return BlockFile(fd, length, page_size)


class RebuiltGuest:
    """What a stream builds.

    `blocks`: all RAM blocks by name; `arrivals`: which of their pages arrived; `images`: those of
    the blocks `wanted` (None: all), closed with `stack`; `unread`: names of sections that nobody
    can look into; `unsplit`: bytes of devices that nothing tells apart; `behind`: what stands
    behind the stream.
    """

    def __init__(self, stack: ExitStack, wanted: Collection[str] | None = None) -> None:
        self.page_size = 4096
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
        """The stream's next event. Raises RebuildError where it lacks a block that is wanted."""
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
        """The names of blocks that were left out as shared."""
        return self.arrivals.absent

    def check_blocks(self, wanted: Iterable[str]) -> None:
        """Raises RebuildError where the stream does not bring a block of one of these names."""
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
        """Put a run into its block; what it encodes is checked though nobody wants the block."""
        name = run.block.name
        image = self.images.get(name)
        if image is not None:
            with named(f"RAM block {name}, in memory"):
                image.take(run)
        else:
            check_run(run, self.page_size)


def absent_message(name: str) -> str:
    """One line."""
    return f"RAM block {name} is not in the stream: it is shared (x-ignore-shared)"


def rebuild(
    found: Iterable[Found], stack: ExitStack, wanted: Collection[str] | None = None
) -> RebuiltGuest:
    """What these events build; see RebuiltGuest. Raises RebuildError, and what `found` does."""
    guest = RebuiltGuest(stack, wanted)
    for event in found:
        guest.take(event)
    guest.check_blocks(wanted or ())
    for name in guest.absent:
        guest.images.pop(name, None)
    return guest
