"""Blocks as everybody maps them; blockers and listeners."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.mapping import map_block, populate, populate_present
from vmferry.guest.parts import RamBlock
from vmferry.guest.synthetic import SyntheticGuest

MakeBlock = Callable[[int], RamBlock]
MIB = 1 << 20


def test_two_mappings_share_bytes(make_block: MakeBlock) -> None:
    """Broken: a worker would read or write a copy of guest RAM."""
    block = make_block(MIB)
    map_block(block)[5000] = 7
    assert map_block(block)[5000] == 7
    assert map_block(replace(block, length=4096, file_offset=4096))[904] == 7


@pytest.mark.parametrize("write", [False, True])
def test_populate_keeps_the_bytes(make_block: MakeBlock, write: bool) -> None:
    """Broken: mapping RAM early would fail, or change it."""
    ram = map_block(make_block(MIB))
    ram[::4096] = np.arange(256, dtype=np.uint8)
    before = ram.copy()
    populate(ram, write)
    assert (ram == before).all()


def test_populate_present_leaves_holes(make_block: MakeBlock) -> None:
    """Broken: receiving a mostly empty guest would allocate all of its RAM."""
    block = make_block(64 * MIB)
    ram = map_block(block)
    ram[40 * MIB] = 1
    used = os.fstat(block.fd).st_blocks
    populate_present(ram, block)
    assert os.fstat(block.fd).st_blocks == used


def test_populate_passes_real_errors_on(make_block: MakeBlock) -> None:
    """Broken: a RAM file cut short would look like an old kernel, and crash a worker later."""
    block = make_block(2 * MIB)
    ram = map_block(block)
    os.ftruncate(block.fd, MIB)
    with pytest.raises(OSError, match="Bad address"):
        populate(ram, True)


def test_blockers_come_and_go() -> None:
    """Broken: a guest that must not move would, or never could again."""
    guest = DirectoryGuest("nowhere")
    first, second = guest.add_blocker("vhost"), guest.add_blocker("vfio")
    assert list(guest.blockers) == ["vhost", "vfio"]
    guest.remove_blocker(first)
    assert list(guest.blockers) == ["vfio"]
    guest.remove_blocker(second)
    assert not guest.blockers


def test_listeners_hear_of_stop_and_resume(
    make_guest: Callable[[str], SyntheticGuest],
) -> None:
    """Broken: whoever follows the guest's state would show the wrong one."""
    guest, heard = make_guest("1M"), list[str]()
    guest.add_listener(heard.append)
    guest.pause()
    guest.resume()
    assert heard == ["stop", "resume"]
