"""A process with soft-dirty bits for kernels that have none: a folder like its own below /proc."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from vmferry.guest.program import ProgramGuest
from vmferry.guest.tracking.soft_dirty import SoftDirtyBits
from vmferry.guest.tracking.tracker import Mask


class FakeProcess:
    """The files that tell and remove the soft-dirty bits of what `write` writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "clear_refs").touch()
        self._fd = os.open(folder / "pagemap", os.O_RDWR | os.O_CREAT)
        self._marked: set[int] = set()

    def grow(self, address: int, length: int) -> None:
        """Let pagemap have entries for all memory up to `address + length`."""
        size = (address + length) // mmap.PAGESIZE * 8
        os.truncate(self._fd, max(size, os.fstat(self._fd).st_size))

    def mark(self, address: int) -> None:
        """Set the bit of the page at this address."""
        page = address // mmap.PAGESIZE
        # Bits of other meanings stand beside it.
        os.pwrite(self._fd, (1 << 55 | 1 << 63 | 1 << 61).to_bytes(8, "little"), page * 8)
        self._marked.add(page)

    def unmark_all(self) -> None:
        """Remove all bits, as the kernel does when clear_refs is written."""
        for page in self._marked:
            os.pwrite(self._fd, (1 << 63 | 1 << 61).to_bytes(8, "little"), page * 8)
        self._marked.clear()

    def close(self) -> None:
        os.close(self._fd)


class FakeBits(SoftDirtyBits):
    """The bits of a FakeProcess; `meanwhile` is called before and behind each step."""

    def __init__(self, process: FakeProcess, meanwhile: Callable[[], None] = lambda: None) -> None:
        super().__init__(str(process.folder))
        self._process = process
        self._meanwhile = meanwhile

    def read(self, address: int, count: int) -> Mask:
        self._meanwhile()
        found = super().read(address, count)
        self._meanwhile()
        return found

    def clear(self) -> None:
        self._meanwhile()
        before = (self._process.folder / "clear_refs").stat().st_size
        super().clear()
        assert (self._process.folder / "clear_refs").read_bytes()[before:] == b"4"
        self._process.unmark_all()
        self._meanwhile()


class Still(ProgramGuest):
    """A guest without devices that does nothing by itself."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def save(self) -> bytes:
        return b""

    def load(self, state: bytes) -> None:
        pass


class BusyGuest(Still):
    """A guest whose writes happen when a test says so, unless it is stopped."""

    def __init__(self, process: FakeProcess, *, page_size: int = 4096, **pages: int) -> None:
        ram = {name: count * page_size for name, count in pages.items()}
        super().__init__("busy", ram, page_size=page_size)
        self._process = process
        for block in self.blocks:
            process.grow(self.address(block.name), -(-block.length // 4096) * 4096)
        self.refused = 0
        """Writes that did not happen, because the guest was stopped."""

    def address(self, name: str) -> int:
        return int(self.memory(name).ctypes.data)

    def write(self, name: str, page: int, value: int) -> None:
        """Write a page, and have the kernel mark it, if the guest runs."""
        if not self.running:
            self.refused += 1
            return
        size = self.machine.page_size
        self.memory(name)[page * size : (page + 1) * size] = np.uint8(value)
        self._process.mark(self.address(name) + page * size)
