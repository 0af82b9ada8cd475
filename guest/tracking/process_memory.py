"""Say where a process has the guest's RAM mapped, and check that it has.

Source: proc(5) and Documentation/filesystems/proc.rst of Linux, on /proc/PID/smaps.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import TrackingError

if TYPE_CHECKING:
    from ..parts import RamBlock

_TMPFS = 0x01021994
"""Type of the file system that has memfds and /dev/shm, as statfs(2) reports it."""
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ ([0-9]+)")
"""First line of a mapping in smaps: start, end, permissions, offset in the file, inode."""


@dataclass(frozen=True)
class ProcessMemory:
    """The process that writes a guest's memory, and where it has the RAM blocks mapped."""

    pid: int
    addresses: tuple[int, ...]
    """Address of each RAM block in that process, in the order of the guest's blocks."""


@dataclass(frozen=True)
class _Mapping:
    start: int
    end: int
    permissions: str
    offset: int
    inode: int
    flags: frozenset[str]


def check_process_memory(memory: ProcessMemory, blocks: Sequence[RamBlock]) -> None:
    """Check that the process writes these blocks where it says, and that marks of it last.

    A page of shared memory loses its soft-dirty bit when it leaves the page table. So swap must not
    take pages of the blocks, and huge pages, which the kernel may take apart, are refused. Raises
    TrackingError with the reason.
    """
    try:
        with open(f"/proc/{memory.pid}/smaps", encoding="utf-8", errors="replace") as file:
            mappings = list(_mappings(file))
    except OSError as error:
        raise TrackingError(f"/proc/{memory.pid}/smaps cannot be read: {error.strerror}") from error
    swap = _swap_is_on()
    for block, address in zip(blocks, memory.addresses, strict=True):
        if block.length:
            _check_file(block)
            _check_block(memory.pid, block, address, mappings, swap)


def _check_file(block: RamBlock) -> None:
    """Raise TrackingError for a file whose pages the kernel may drop or merge."""
    if _file_system(block.fd) != _TMPFS:
        raise TrackingError(f"RAM block {block.name!r} is not in memory of small pages (memfd)")
    if os.fstat(block.fd).st_blksize > mmap.PAGESIZE:
        raise TrackingError(f"RAM block {block.name!r} may have huge pages, which lose their marks")


def _check_block(
    pid: int, block: RamBlock, address: int, mappings: Sequence[_Mapping], swap: bool
) -> None:
    """Raise TrackingError unless mappings at `address` have all of the block, to be written."""
    inode, end = os.fstat(block.fd).st_ino, address + block.length
    # The kernel may have split what was one mapping.
    for mapping in mappings:
        if address < end and mapping.start <= address < mapping.end:
            same = mapping.inode == inode and mapping.permissions[3] == "s"
            here = mapping.offset + address - mapping.start == block.file_offset + block.length - (
                end - address
            )
            if not (same and here):
                break
            if swap and "lo" not in mapping.flags:
                raise TrackingError(
                    "pages lose their soft-dirty bits in swap; lock the guest's memory (mlock), "
                    "or switch swap off"
                )
            address = mapping.end
    if address < end:
        raise TrackingError(f"process {pid} does not have RAM block {block.name!r} at its address")


def _mappings(lines: Iterator[str]) -> Iterator[_Mapping]:
    """Yield the mappings that smaps lists, in the order of their addresses."""
    head: re.Match[str] | None = None
    for line in lines:
        head = _HEAD.match(line) or head
        if head is not None and line.startswith("VmFlags:"):
            start, end, permissions, offset, inode = head.groups()
            flags = frozenset(line.split()[1:])
            yield _Mapping(
                int(start, 16), int(end, 16), permissions, int(offset, 16), int(inode), flags
            )


def _swap_is_on() -> bool:
    """Return whether this system may swap; where that is not known, it may."""
    try:
        with open("/proc/swaps", encoding="utf-8") as file:
            return len(file.readlines()) > 1
    except FileNotFoundError:
        # This kernel is made without swap.
        return False
    except OSError:
        return True


def _file_system(fd: int) -> int:
    """Return the type of the file system that `fd` is in. Raises TrackingError."""
    answer = (ctypes.c_long * 64)()
    if ctypes.CDLL(None, use_errno=True).fstatfs(fd, answer):
        raise TrackingError(f"fstatfs: {os.strerror(ctypes.get_errno())}")
    return int(answer[0])
