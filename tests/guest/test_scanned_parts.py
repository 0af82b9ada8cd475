"""Test what `qemu:SOCK,scan` finds out about a QEMU, with a monitor that answers from here."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
from vmferry.guest.parts import DeviceSection, DeviceState
from vmferry.guest.qemu import shared_ram
from vmferry.guest.qemu.global_state import as_running, says_stopped
from vmferry.guest.qemu.monitor import Monitor, QemuError

SIZE = 64 << 10
TREE = """FlatView #1
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): one KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  0000000100004000-000000010000ffff (prio 0, ram): two @0000000000004000
"""


class Answers:
    """A monitor of a QEMU that has block `two` in this process, at `address`."""

    process = os.getpid()

    def __init__(self, address: int) -> None:
        self._address = address

    def ask(self, command: str, **arguments: Any) -> Any:
        if command == "query-memdev":
            return [{"id": "two", "size": SIZE, "share": False}, {"size": 1, "share": True}]
        asked = arguments["command-line"]
        if asked == "info mtree -f":
            return TREE
        assert asked == "gpa2hva 0x0000000100004000"
        return f"Host virtual address for 0x100004000 (two) is {self._address + 0x4000:#x}\n"


@pytest.fixture(params=[mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def mapped(request: pytest.FixtureRequest) -> Iterator[tuple[int, bool, Monitor]]:
    """Yield a memfd, whether its mapping is shared, and the monitor that reports it."""
    fd = os.memfd_create("scanned")
    os.ftruncate(fd, 2 * SIZE)
    mapping = mmap.mmap(fd, SIZE, flags=request.param, offset=SIZE)
    address = np.frombuffer(mapping, np.uint8).ctypes.data
    shared = request.param == mmap.MAP_SHARED
    yield fd, shared, cast("Monitor", Answers(address))
    os.close(fd)


def test_file_behind_a_block(mapped: tuple[int, bool, Monitor]) -> None:
    """Broken: vmferry would move other memory than the guest has, or a copy of its own."""
    fd, shared, monitor = mapped
    if not shared:
        with pytest.raises(QemuError, match="is not shared"):
            shared_ram.open_block(monitor, "two", SIZE)
        return
    found = shared_ram.open_block(monitor, "two", SIZE)
    os.pwrite(found.fd, b"guest", found.offset)
    os.close(found.fd)
    assert os.pread(fd, 5, SIZE) == b"guest"


def test_block_that_qemu_does_not_name(mapped: tuple[int, bool, Monitor]) -> None:
    """Broken: a block would be looked for at the address of another one."""
    with pytest.raises(QemuError, match="where it has its memory three"):
        shared_ram.open_block(mapped[2], "three", SIZE)


def test_how_to_share(mapped: tuple[int, bool, Monitor]) -> None:
    """Broken: a user would not learn the options that share the guest's memory."""
    found = shared_ram.backends(mapped[2])
    assert [backend.name for backend in found] == ["two"]
    for block in ("two", "/objects/two"):
        with pytest.raises(QemuError, match=r"memory-backend-file,id=two,size=0M.*leave out"):
            shared_ram.refuse_unshared(found, [block, "vga.vram"])
    with pytest.raises(QemuError, match=r"id=pc\.ram"):
        shared_ram.refuse_unshared(found, ["vga.vram"])


def state(text: bytes) -> DeviceState:
    payload = (len(text) + 1).to_bytes(4, "big") + text.ljust(100, b"\0")
    return DeviceState((), (DeviceSection(7, "globalstate", 0, 1, payload),), None, 2)


def test_stopped_to_be_saved_runs_on() -> None:
    """Broken: a stock QEMU would leave a guest stopped that ran until it migrated."""
    assert as_running(state(b"paused")) == state(b"running")
    assert says_stopped(state(b"paused"))
    assert not says_stopped(state(b"running"))


def test_other_states_stay() -> None:
    """Broken: a guest that was suspended or had crashed would run where it arrives."""
    assert as_running(state(b"suspended")) == state(b"suspended")
    assert says_stopped(state(b"guest-panicked"))
