"""RAM as a worker maps it."""

from __future__ import annotations

import os
from multiprocessing.connection import Pipe

import numpy as np
import numpy.typing as npt
import pytest
from vmferry.guest.mapping import block_layout
from vmferry.guest.parts import RamBlock
from vmferry.sender.chunks import CHUNK_PAGES, map_blocks
from vmferry.sender.share import Share
from vmferry.sender.tracking import BY_DIGESTS
from vmferry.transport.process import send_fd

PAGE = 4096
CHUNKS = 6
HOLE = 2
"""The chunk whose pages do not exist."""
AROUND = 2 * 16
"""Pages on both sides that the kernel may map besides those that it was asked for."""


@pytest.mark.parametrize("share", [Share(0, 1), Share(0, 2), Share(1, 2), Share(2, 3)])
def test_only_own_pages_are_mapped(share: Share) -> None:
    """Broken: each worker would take the time to map, and to unmap, what others send; or a fault
    for each page that it sends."""
    blocks = []
    for name, pages in (("rom", 10), ("ram", CHUNKS * CHUNK_PAGES - 7)):
        fd = os.memfd_create(name)
        os.ftruncate(fd, pages * PAGE)
        blocks.append(RamBlock(name, pages * PAGE, PAGE, fd))
        for chunk in range(-(-pages // CHUNK_PAGES)):
            if chunk != HOLE:
                there = min(CHUNK_PAGES, pages - chunk * CHUNK_PAGES)
                os.pwrite(fd, bytes(there * PAGE), chunk * CHUNK_PAGES * PAGE)
    ours, theirs = Pipe()
    with ours, theirs:
        for block in blocks:
            send_fd(theirs, block.fd)
        mapped = map_blocks(ours, block_layout(blocks), BY_DIGESTS, share)
    number = 0
    for seen in mapped:
        present = _present(seen.ram)
        for start in range(0, len(present), CHUNK_PAGES):
            found = present[start : start + CHUNK_PAGES]
            own = number % share.count == share.index
            if own and (seen.name, start // CHUNK_PAGES) != (b"ram", HOLE):
                assert found.all()
            else:
                assert found.sum() <= AROUND
            number += 1
    for block in blocks:
        os.close(block.fd)


def _present(ram: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which pages this process has in its page table.

    Source: Documentation/admin-guide/mm/pagemap.rst of Linux.
    """
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(ram.ctypes.data // PAGE * 8)
        entries = np.frombuffer(file.read(len(ram) * 8), np.uint64)
    return np.asarray(entries >> np.uint64(63) != 0)
