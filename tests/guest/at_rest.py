"""A guest at rest of a known content, and everything that a folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.mapping import map_block
from vmferry.guest.parts import BlockLayout, DeviceSection, DeviceState, Machine

MACHINE = Machine("pc-i440fx-7.2", 4096, ("events",), bytes(range(16)), True)
LAYOUT = [
    BlockLayout("pc.ram", 1 << 20, 4096),
    BlockLayout("0000:00:02.0/vga.vram", 8192, 4096),
    BlockLayout("../../escape", 4096, 4096),
]
STATE = DeviceState(
    early=(DeviceSection(0, "timer", 0, 2, b"\x00\x01"),),
    sections=(
        DeviceSection(3, "cpu", 0, 12, b"\xff" * 100),
        DeviceSection(9, "cpu", 1, 12, b""),
        DeviceSection(10, "/etc/../..", 0, 1, b"x"),
    ),
    description='{"page_size": 4096, "naïve": 1}\n'.encode(),
    ram_section_id=2,
)


def arrived(path: Path) -> DirectoryGuest:
    """Return a guest whose RAM and devices are all there, but which is not sealed."""
    guest = DirectoryGuest(str(path))
    guest.check_incoming()
    guest.prepare(MACHINE, LAYOUT)
    for number, block in enumerate(guest.blocks):
        map_block(block)[-1] = number + 1
    guest.load_devices(MACHINE, STATE)
    guest.invalidate_caches()
    return guest


def sealed(path: Path, *, running: bool = True) -> DirectoryGuest:
    """Return a guest of which only `complete` is left."""
    guest = arrived(path)
    guest.seal(running=running)
    return guest


def receive(path: Path, *, running: bool = True) -> None:
    """Receive a whole guest at `path`."""
    guest = sealed(path, running=running)
    guest.complete(running=running)
    guest.close()


def kept(path: Path) -> str:
    """Receive a whole guest at `path` that is not started, and return the line that says so."""
    return sealed(path).keep()


def assert_whole(path: Path) -> None:
    """Check that the guest at `path` is the one above."""
    guest = DirectoryGuest(str(path))
    assert guest.machine == MACHINE
    assert guest.save_devices() == STATE
    assert [(b.name, b.length) for b in guest.blocks] == [(b.name, b.length) for b in LAYOUT]
    assert [int(map_block(block)[-1]) for block in guest.blocks] == [1, 2, 3]
    assert not guest.running
    guest.close()


def everything(path: Path) -> dict[str, bytes | str]:
    """Return every name below a folder, with what it holds."""
    return {
        str(found.relative_to(path)): found.read_bytes() if found.is_file() else "not a file"
        for found in path.rglob("*")
    }


def rewrite(path: Path, change: Callable[[Any], object], name: str = "guest.json") -> None:
    """Change the document in guest.json."""
    document = json.loads((path / name).read_text())
    change(document)
    (path / name).write_text(json.dumps(document))
