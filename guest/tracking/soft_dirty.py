"""Find what another process wrote by the soft-dirty bits of its pages.

For processes that cannot register their memory anywhere: only a process id and the addresses of the
guest's RAM in it are needed. The kernel sets bit 55 of a page's entry in /proc/PID/pagemap when the
process writes the page; "4" written to /proc/PID/clear_refs removes the bits of the whole process,
and write-protects its pages, so that the next write sets the bit again.
Sources: Documentation/admin-guide/mm/soft-dirty.rst and pagemap.rst of Linux.

Two facts make law 1 (re-arm, then copy) hard to keep here:

- Bits are removed from all pages at once, so no worker may do that for the pages that it takes.
- Nothing reads and removes bits in one step. A page that is written after the bits were read and
  before they are removed would never be found, whichever is first.

So the bits are collected once a round, while no worker runs and **the guest is held**:

1. The guest is held: on return, it does not write any more.
2. The bits of all RAM are read, and added to a table that is shared with the workers.
3. All bits are removed.
4. The guest runs on, and the workers take pages from the table, each from its own regions.

A write before step 1 is in the table. There are no writes in steps 2 and 3. A write after step 4
sets its bit again, because step 3 write-protected the page, and the next collection finds it. A
page is copied after step 4; so whatever the copy may have missed has its bit set. The last round
is collected from a paused guest, which is not held again.

The guest is stopped for as long as reading and removing take, a few milliseconds a GiB.

Not seen is what does not go through the page table of that process: writes by devices (vhost-user,
VFIO, direct I/O into pages that were pinned before), writes through other mappings, memory that is
given back (MADV_REMOVE, a hole punched in its file), and bits of pages that left the page table
(`process_memory` refuses swap and huge pages).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from .errors import TrackingError
from .process_memory import ProcessMemory, check_process_memory
from .table import map_table
from .tracker import Mask

if TYPE_CHECKING:
    from ..base import Guest
    from ..parts import RamBlock

_ENTRY = np.dtype("=u8")
"""Type of an entry in the file pagemap, which has one for each page of the system."""
_SOFT_DIRTY = 1 << 55
"""Bit of an entry that is set if the page was written since the bits were removed."""
_CLEAR_SOFT_DIRTY = b"4"
"""Text that removes the bits of all pages when it is written to the file clear_refs."""
_PIECE = 1 << 16
"""Number of entries that are read at once."""


class SoftDirtyBits:
    """The soft-dirty bits of a process, by the files in its folder below /proc.

    Raises TrackingError where they cannot be had, or somebody else tracks this process by them.
    """

    def __init__(self, folder: str) -> None:
        with ExitStack() as stack:
            self._pagemap = self._open(f"{folder}/pagemap", os.O_RDONLY, stack)
            self._clear_refs = self._open(f"{folder}/clear_refs", os.O_WRONLY, stack)
            try:
                fcntl.flock(self._clear_refs, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TrackingError("another migration uses that process's bits") from error
            self._close = stack.pop_all()

    @staticmethod
    def _open(path: str, flags: int, stack: ExitStack) -> int:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise TrackingError(f"{path} cannot be opened: {error.strerror}") from error
        stack.callback(os.close, fd)
        return fd

    def read(self, address: int, count: int) -> Mask:
        """Return which of `count` pages of the system from `address` on have their bit set."""
        marked = np.empty(count, np.bool_)
        entries = np.empty(min(_PIECE, count), _ENTRY)
        position = address // mmap.PAGESIZE * _ENTRY.itemsize
        done = 0
        while done < count:
            piece = entries[: count - done]
            size = os.preadv(self._pagemap, [piece.data.cast("B")], position)
            if not size:
                raise TrackingError("the guest's process died")
            found = size // _ENTRY.itemsize
            marked[done : done + found] = piece[:found] & np.uint64(_SOFT_DIRTY) != 0
            done += found
            position += found * _ENTRY.itemsize
        return marked

    def clear(self) -> None:
        """Remove the bits of all pages of the process."""
        try:
            os.write(self._clear_refs, _CLEAR_SOFT_DIRTY)
        except OSError as error:
            died = error.errno == errno.ESRCH
            reason = "the guest's process died" if died else f"clear_refs: {error.strerror}"
            raise TrackingError(reason) from error

    def close(self) -> None:
        """Close the files."""
        self._close.close()


class SoftDirtyMarks:
    """The pages that a guest wrote, in a table that is filled before each round."""

    def __init__(
        self, bits: SoftDirtyBits, addresses: Sequence[int], blocks: Sequence[RamBlock]
    ) -> None:
        self._bits = bits
        self._addresses = tuple(addresses)
        self._blocks = tuple(blocks)
        counts = [block.length // block.page_size for block in blocks]
        self.table = os.memfd_create("vmferry-dirty", os.MFD_CLOEXEC)
        """Descriptor of the table, a byte a page, in which all pages are dirty at first."""
        os.ftruncate(self.table, max(sum(counts), 1))
        self._parts = map_table(self.table, counts)
        for part in self._parts:
            part[:] = True

    def collect(self, guest: Guest) -> None:
        """Add what was written to the table, and remove its marks, while the guest is held.

        No worker may take anything meanwhile. Raises GuestError.
        """
        with guest.held():
            for part, found in zip(self._parts, self._read(), strict=True):
                np.logical_or(part, found, out=part)
            self._bits.clear()

    def dirty_bytes(self) -> int:
        """Return how many bytes are dirty now, collected or not. Raises TrackingError."""
        total = 0
        for block, part, found in zip(self._blocks, self._parts, self._read(), strict=True):
            total += int((found | part).sum()) * block.page_size
        return total

    def check(self, guest: Guest) -> None:
        """Raise TrackingError unless removing marks removes them."""
        with guest.held():
            self._bits.clear()
            if any(found.any() for found in self._read()):
                raise TrackingError("clear_refs does not remove the marks of this memory")

    def _read(self) -> list[Mask]:
        """Return which pages of each block are marked."""
        return [
            _by_page(self._bits.read(address, -(-block.length // mmap.PAGESIZE)), block)
            for address, block in zip(self._addresses, self._blocks, strict=True)
        ]

    def close(self) -> None:
        """Stop reading the marks. A page then costs the guest one more fault at its next write."""
        self._bits.close()
        os.close(self.table)


def _by_page(marked: Mask, block: RamBlock) -> Mask:
    """Return which pages of the block are marked, where pages of the system are."""
    count = block.length // block.page_size
    if block.page_size > mmap.PAGESIZE:
        return np.asarray(marked.reshape(count, -1).any(axis=1))
    return np.repeat(marked, mmap.PAGESIZE // block.page_size)[:count]


def read_soft_dirty(memory: ProcessMemory, guest: Guest) -> SoftDirtyMarks:
    """Return the marks of the guest's memory in that process; all of it is dirty at first.

    Raises TrackingError with the reason if that is not possible here.
    """
    if not kernel_has_soft_dirty():
        raise TrackingError("this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)")
    check_process_memory(memory, guest.blocks)
    marks = SoftDirtyMarks(SoftDirtyBits(f"/proc/{memory.pid}"), memory.addresses, guest.blocks)
    try:
        marks.check(guest)
    except BaseException:
        marks.close()
        raise
    return marks


def kernel_has_soft_dirty() -> bool:
    """Return whether a page that was just written has its bit set.

    No bit is removed for that, since all bits of this process would go, and somebody may use them.
    A mapping that is new has all of its bits set.
    """
    own = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.uint8)
    own[0] = 1
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(own.ctypes.data // mmap.PAGESIZE * _ENTRY.itemsize)
            entry = np.frombuffer(file.read(_ENTRY.itemsize), _ENTRY)
    except OSError:
        return False
    return bool((entry & np.uint64(_SOFT_DIRTY)).any())
