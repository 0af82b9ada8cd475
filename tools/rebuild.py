"""A guest as its stream builds it: RAM in anonymous memory, and the devices beside it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from ..protocol import compress, events, xbzrle
from .failure import CommandError


class RebuildError(CommandError):
    """The RAM that is asked for cannot be rebuilt, or not be compared; one line."""


class Image:
    """A RAM block in anonymous memory that takes only what is not zero."""

    def __init__(self, length: int, page_size: int) -> None:
        self.length = length
        self.page_size = page_size
        self.fd = os.memfd_create("vmferry-image", os.MFD_CLOEXEC)
        # Nothing can be mapped where a block is empty.
        size = max(length, page_size)
        try:
            os.ftruncate(self.fd, size)
            flat = np.frombuffer(mmap.mmap(self.fd, size), np.uint8)[:length]
        except OSError:
            self.close()
            raise
        self._ram = flat.reshape(-1, page_size)
        self._written = np.zeros(len(self._ram), np.bool_)

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last mapping."""
        os.close(self.fd)

    def apply(self, run: events.PageRun) -> None:
        """Put a run of pages in its place."""
        numbers = page_numbers(run.offsets, self.page_size)
        if run.data is None and run.fill == 0:
            # To write a zero, or only to read one, would take memory for the page.
            self._ram[numbers[self._written[numbers]]] = 0
            return
        self._ram[numbers] = run.fill if run.data is None else run.data
        self._written[numbers] = True

    def put(self, offsets: npt.NDArray[np.uint64], pages: npt.NDArray[np.uint8]) -> None:
        """Put `pages` (n, page size) in their places."""
        numbers = page_numbers(offsets, self.page_size)
        self._ram[numbers] = pages
        self._written[numbers] = True

    def change(self, run: events.XbzrleRun, runs: xbzrle.Runs) -> None:
        """Change pages by a run of XBZRLE records, which was read as `runs`."""
        numbers = page_numbers(run.offsets, self.page_size)
        xbzrle.apply(self._ram, numbers, run.data, runs)
        self._written[numbers] = True


def page_numbers(offsets: npt.NDArray[np.uint64], page_size: int) -> npt.NDArray[np.intp]:
    """Of pages at these offsets in a block."""
    return (offsets // np.uint64(page_size)).astype(np.intp)


class RebuiltGuest:
    """What a stream builds.

    `blocks`: all RAM blocks by name; `seen`: of each, which pages (n,) came at least once;
    `images`: those of the blocks `wanted` (None: all), closed with `stack`.
    """

    def __init__(self, stack: ExitStack, wanted: Collection[str] | None = None) -> None:
        self.page_size = 4096
        self.blocks: dict[str, events.RamBlock] = {}
        self.seen: dict[str, npt.NDArray[np.bool_]] = {}
        self.images: dict[str, Image] = {}
        self.configuration: events.Configuration | None = None
        self.devices: list[events.DeviceSection] = []
        self.description: events.Description | None = None
        self._stack = stack
        self._wanted = wanted

    def take(self, event: events.Event) -> None:
        """The stream's next event. Raises RebuildError where it lacks a block that is wanted."""
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            self._take_pages(event)
        elif isinstance(event, events.Configuration):
            self.configuration = event
        elif isinstance(event, events.RamBlocks):
            self.page_size = event.page_size
            self._list_blocks(event.blocks)
        elif isinstance(event, events.DeviceSection):
            self.devices.append(event)
        elif isinstance(event, events.Description):
            self.description = event

    def check_blocks(self, wanted: Iterable[str]) -> None:
        """Raises RebuildError where the stream has no block of one of these names."""
        for name in wanted:
            if name not in self.blocks:
                names = ", ".join(self.blocks) or "none"
                raise RebuildError(f"no RAM block {name!r} in the stream; it has {names}")

    def _list_blocks(self, blocks: Iterable[events.RamBlock]) -> None:
        self.blocks = {block.name: block for block in blocks}
        self.check_blocks(self._wanted or ())
        for name, block in self.blocks.items():
            self.seen[name] = np.zeros(block.length // self.page_size, np.bool_)
            if self._wanted is None or name in self._wanted:
                self.images[name] = Image(block.length, self.page_size)
                self._stack.callback(self.images[name].close)

    def _take_pages(self, run: events.PageRun | events.EncodedRun) -> None:
        """Put a run into its block; what it encodes is checked though nobody wants the block."""
        image = self.images.get(run.block.name)
        self.seen[run.block.name][page_numbers(run.offsets, self.page_size)] = True
        if isinstance(run, events.XbzrleRun):
            runs = xbzrle.read_run(run, self.page_size)
            if image is not None:
                image.change(run, runs)
        elif isinstance(run, events.CompressedRun):
            pages = compress.decompress(run, self.page_size)
            if image is not None:
                image.put(run.offsets, pages)
        elif image is not None:
            assert isinstance(run, events.PageRun)
            image.apply(run)


def rebuild(
    found: Iterable[events.Event], stack: ExitStack, wanted: Collection[str] | None = None
) -> RebuiltGuest:
    """What these events build; see RebuiltGuest. Raises RebuildError, and what `found` does."""
    guest = RebuiltGuest(stack, wanted)
    for event in found:
        guest.take(event)
    guest.check_blocks(wanted or ())
    return guest
