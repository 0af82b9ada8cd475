"""Hold the RAM blocks of a QEMU that shares its RAM: its files, and memory of this process.

What QEMU does not share has a block of this process, which QEMU's own stream fills at the source,
and from which it is written into QEMU's own stream at the destination.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..mapping import map_block
from ..parts import BlockLayout, RamBlock
from . import shared_ram
from .local_stream import Pages
from .monitor import Monitor, QemuError


class ScannedMemory:
    """The RAM blocks of a QEMU in the order of `layouts`, with descriptors that belong to this.

    Raises QemuError if the guest's memory is not shared, or is not as `layouts` say.
    """

    def __init__(self, monitor: Monitor, layouts: Sequence[BlockLayout]) -> None:
        self.blocks: tuple[RamBlock, ...] = ()
        """All RAM blocks of the guest."""
        self.own: dict[str, Pages] = {}
        """The pages of the blocks that QEMU does not share, by name."""
        self.addresses: tuple[int | None, ...] = ()
        """The address of each block in QEMU, None for those that it does not share."""
        found = shared_ram.backends(monitor)
        shared_ram.refuse_unshared(found, [layout.name for layout in layouts])
        try:
            for layout in layouts:
                backend = shared_ram.backend_of(found, layout.name)
                if backend is None:
                    self._make(layout)
                else:
                    self._open(monitor, backend, layout)
        except BaseException:
            self.close()
            raise

    def _open(self, monitor: Monitor, backend: shared_ram.Backend, layout: BlockLayout) -> None:
        name, length = layout.name, layout.length
        if backend.size != length:
            raise QemuError(
                f"RAM block {name} has {length} bytes, and the QEMU here has {backend.size}"
            )
        file = shared_ram.open_block(monitor, name, length)
        self.blocks += (RamBlock(name, length, layout.page_size, file.fd, file.offset),)
        self.addresses += (file.address,)

    def _make(self, layout: BlockLayout) -> None:
        fd = os.memfd_create("vmferry-block", os.MFD_CLOEXEC)
        block = RamBlock(layout.name, layout.length, layout.page_size, fd)
        self.blocks += (block,)
        self.addresses += (None,)
        if layout.length:
            os.ftruncate(fd, layout.length)
            self.own[layout.name] = map_block(block).reshape(-1, layout.page_size)

    def clear_own(self) -> None:
        """Make the blocks zero that QEMU does not share."""
        for pages in self.own.values():
            pages[pages.any(axis=1)] = 0

    def close(self) -> None:
        """Close all descriptors; mappings of them stay valid."""
        for block in self.blocks:
            os.close(block.fd)
        self.blocks, self.own, self.addresses = (), {}, ()
