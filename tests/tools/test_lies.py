"""Lies about sizes and places, in files of some kilobytes: one line, soon, in little memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from vmferry.protocol import events
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.wire.mapped_ram import Header

from tests import streams
from tests.protocol.kinds import mapped
from tests.tools.running import run_process
from tests.tools.test_containers import save_image

MEMORY = 96 << 10
"""KiB beyond what reading a small stream takes: a device may have 64 MiB."""
FAR = 1 << 40


def _image_that_lies() -> bytes:
    return save_image(bytes(4) + streams.SMALL[4:], data_length=0xFFFFFFF0)


def _image_of_all_that_is_allowed() -> bytes:
    return save_image(bytes(4) + streams.SMALL[4:], data_length=16 << 20)


def _bomb() -> bytes:
    """Return a stream whose device never ends: 4 GiB of a byte that begins no footer."""
    made = zstandard.ZstdCompressor().compressobj()
    data = made.compress(streams.SMALL[: streams.SMALL.index(b"virtio-mem") + 9])
    return data + b"".join(made.compress(b"\x55" * (1 << 20)) for _ in range(4096)) + made.flush()


def _bomb_of_zeros_as_an_image() -> bytes:
    made = zstandard.ZstdCompressor().compressobj()
    data = made.compress(streams.SMALL[:100])
    data += b"".join(made.compress(bytes(1 << 20)) for _ in range(4096)) + made.flush()
    return save_image(data, format=5)


def _mapped(end: Callable[[events.RamBlock], int]) -> bytes:
    """Return a mapped-ram file that ends there."""
    data, _ = mapped({"ram": [1, 600]})
    found = StreamReader().feed(data)
    (listed,) = [event for event in found if isinstance(event, events.RamBlocks)]
    return data[: end(listed.blocks[0])]


def _cut_bitmap() -> bytes:
    return _mapped(lambda block: (block.mapped.bitmap_offset if block.mapped else 0) + 40)


def _bitmap_far_away() -> bytes:
    """Move all places by a terabyte: by the first bitmap, the file then began before."""
    return _moved(1)


def _second_bitmap_far_away() -> bytes:
    return _moved(2)


def _moved(number: int) -> bytes:
    data, _ = mapped({"ram": [1], "rom": [2]}, count=9)
    (listed,) = [
        event for event in StreamReader().feed(data) if isinstance(event, events.RamBlocks)
    ]
    place = listed.blocks[number - 1].mapped
    assert place is not None
    values = {"version": 1, "page_size": 4096, "bitmap_offset": place.bitmap_offset}
    old = Header.build({**values, "pages_offset": place.pages_offset})
    values["bitmap_offset"] += FAR
    lie = Header.build({**values, "pages_offset": place.pages_offset + FAR})
    return data.replace(old, lie)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return how many KiB of memory reading a small stream takes."""
    folder = tmp_path_factory.mktemp("usual")
    return run_process("verify", "-", feed=streams.SMALL, folder=folder).rss


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_image_that_lies, "offset 0x14: 4294967280 bytes of XML in the libvirt image"),
        (_image_of_all_that_is_allowed, "the libvirt image ends within its XML"),
        (_bomb, "bytes of device state"),
        (_bomb_of_zeros_as_an_image, "offset 0x"),
        (_cut_bitmap, "the bitmap of block ram lies past the end of the file"),
        (_bitmap_far_away, "offset 0x"),
        (_second_bitmap_far_away, "the bitmap of block rom lies past the end of the file"),
    ],
)
def test_lies(make: Callable[[], bytes], said: str, vmferry: Any, usual: int) -> None:
    """Broken: a length or a place would be believed, and all memory or all time taken by it."""
    path, out = vmferry.write("stream", make()), str(vmferry.folder / "out")
    most = ("--max-device-state", "64M")
    ran = vmferry.run("verify", path, *most)
    assert ran.status == 1
    assert said in ran.error
    assert ran.error.startswith(f"{path}: offset 0x")
    assert ran.rss < usual + MEMORY
    for command in (("dump", path), ("extract", path, "--all", "-o", out)):
        called = vmferry.call(*command, *most)
        assert (called.exit_code, called.stderr) == (1, f"vmferry: {ran.error}\n")
    assert not os.path.exists(out) or not os.listdir(out)
