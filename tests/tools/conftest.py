"""The command line as a user runs it, and streams with guests of a known content."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result
from vmferry.protocol import events
from vmferry.protocol.wire.marks import SectionType
from vmferry.protocol.writer import StreamWriter
from vmferry.tools.cli import main

from tests.patience import PATIENCE

PAGE = 4096
BLOCKS = (events.RamBlock("pc.ram", 256 * PAGE), events.RamBlock("/rom@etc/acpi", 8 * PAGE))
RAM_ID = 2


def piece(kind: SectionType, *records: events.Event) -> list[events.Event]:
    """One piece of the `ram` section around these records."""
    return [events.RamSection(0, kind, RAM_ID), *records, events.EndOfRam(0), events.Footer(0, 2)]


def pages(
    block: int, numbers: Iterable[int], fill: int | None = None, continued: bool = False
) -> events.PageRun:
    """Pages `numbers` of a block: of the byte `fill`, or (None) each with its own content."""
    offsets = np.array(list(numbers), np.uint64) * np.uint64(PAGE)
    data = None
    if fill is None:
        data = np.random.default_rng(block + 5).integers(0, 256, (len(offsets), PAGE), np.uint8)
    return events.PageRun(0, BLOCKS[block], block, offsets, data, fill or 0, continued)


def changes(block: int, what: dict[int, tuple[int, bytes]]) -> events.XbzrleRun:
    """XBZRLE records: of pages of a block, where new bytes begin (below 128), and these."""
    offsets = np.array(list(what), np.uint64) * np.uint64(PAGE)
    encodings = [bytes([start, len(new)]) + new for start, new in what.values()]
    sizes = np.array([len(encoding) for encoding in encodings], np.intp)
    data = np.frombuffer(b"".join(encodings), np.uint8)
    return events.XbzrleRun(0, BLOCKS[block], block, offsets, data, np.cumsum(sizes) - sizes, sizes)


def zipped(block: int, what: dict[int, bytes]) -> events.CompressedRun:
    """COMPRESS_PAGE records: of pages of a block, what they begin with."""
    offsets = np.array(list(what), np.uint64) * np.uint64(PAGE)
    encodings = [zlib.compress(content.ljust(PAGE, b"\0")) for content in what.values()]
    sizes = np.array([len(encoding) for encoding in encodings], np.intp)
    data, starts = np.frombuffer(b"".join(encodings), np.uint8), np.cumsum(sizes) - sizes
    return events.CompressedRun(0, BLOCKS[block], block, offsets, data, starts, sizes)


def device(section_id: int, name: str, payload: bytes, instance_id: int = 0) -> events.Event:
    """A device section."""
    return events.DeviceSection(0, section_id, name, instance_id, 1, payload)


def describe(devices: Iterable[events.Event]) -> events.Description:
    """The description of these devices, laid out as QEMU's."""
    listed = [
        {
            "name": section.name,
            "instance_id": section.instance_id,
            "vmsd_name": section.name,
            "version": section.version,
            "fields": [{"name": "data", "type": "buffer", "size": len(section.payload)}],
        }
        for section in devices
        if isinstance(section, events.DeviceSection)
    ]
    value = {"page_size": PAGE, "devices": listed}
    return events.Description(0, json.dumps(value).encode(), value)


def opening(blocks: tuple[events.RamBlock, ...] = BLOCKS) -> list[events.Event]:
    """All that stands before the first page."""
    total = sum(block.length for block in blocks)
    return [
        events.Header(0),
        events.Configuration(0, "pc-q35-7.2", PAGE, ("events",), bytes(range(16))),
        device(0, "timer", b"\x01" * 24),
        *piece(SectionType.START, events.RamBlocks(0, total, blocks)),
    ]


def closing() -> list[events.Event]:
    """All that stands behind the last page."""
    devices = [
        device(3, "cpu", bytes(range(256)) * 4),
        device(4, "cpu", b"\x7e\0\0\0\x04\x04" * 9, instance_id=1),
        device(5, "0000:00:02.0/vga", b""),
    ]
    return [
        *piece(SectionType.END),
        *devices,
        events.EndOfStream(0),
        describe([*devices, device(0, "timer", b"\x01" * 24)]),
    ]


def zeros(blocks: tuple[events.RamBlock, ...] = BLOCKS) -> list[events.Event]:
    """A piece with every page of these blocks, as zero."""
    runs = [
        events.PageRun(0, block, index, np.arange(0, block.length, PAGE).astype(np.uint64), None)
        for index, block in enumerate(blocks)
    ]
    return piece(SectionType.PART, *runs)


def whole_stream() -> list[events.Event]:
    """The stream below, with every page that it lacks: of zeros."""
    first, rest = opening(), small_stream()[len(opening()) :]
    return [*first, *zeros(), *rest]


def small_stream() -> list[events.Event]:
    """Plain and zero pages, in two pieces, some of them sent again, others never."""
    return [
        *opening(),
        *piece(
            SectionType.PART,
            pages(0, [*range(20), 40, 41, 60]),
            pages(0, range(100, 250), 0, continued=True),
            pages(0, [21, 22], 0x5A, continued=True),
            pages(1, [3, 1]),
        ),
        *piece(
            SectionType.PART,
            pages(0, [1], 0),
            pages(0, range(200, 210)),
            changes(0, {203: (9, b"new"), 204: (0, b"er"), 30: (100, b"on zero")}),
        ),
        *closing(),
    ]


def to_bytes(found: Iterable[events.Event]) -> bytes:
    """The stream that these events make."""
    return b"".join(map(StreamWriter().write, found))


def ram_images(found: Iterable[events.Event]) -> dict[str, bytearray]:
    """RAM as these events build it, one page at a time; by the name of the block."""
    images = {block.name: bytearray(block.length) for block in BLOCKS}
    for event in found:
        if isinstance(event, events.PageRun):
            for row, offset in enumerate(event.offsets.tolist()):
                body = bytes([event.fill]) * PAGE if event.data is None else bytes(event.data[row])
                images[event.block.name][offset : offset + PAGE] = body
        elif isinstance(event, events.XbzrleRun):
            for row, offset in enumerate(event.offsets.tolist()):
                start, size, *new = event.data[event.starts[row] :][: event.sizes[row]].tolist()
                at = offset + start
                images[event.block.name][at : at + size] = bytes(new)
        elif isinstance(event, events.CompressedRun):
            for row, offset in enumerate(event.offsets.tolist()):
                data = bytes(event.data[event.starts[row] :][: event.sizes[row]])
                images[event.block.name][offset : offset + PAGE] = zlib.decompress(data)
    return images


@dataclass(frozen=True)
class Ran:
    """How a command ended. `seconds`: until all its processes were gone; `rss`: KiB at most."""

    status: int
    out: str
    err: str
    seconds: float
    rss: int

    @property
    def error(self) -> str:
        """The one line of error; what is told of the progress apart."""
        told = ("listening on ", "receiving: ", "sending: ", "migrating: ")
        lines = [line for line in self.err.splitlines() if not line.startswith(told)]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("vmferry: "), self.err
        return lines[0].removeprefix("vmferry: ")


def run_process(
    *arguments: str, feed: bytes | None = None, limit: float = PATIENCE, folder: Path
) -> Ran:
    """`vmferry ARGUMENTS` in a process; all that it started is gone when this returns."""
    command = [sys.executable, "-m", "vmferry.tools.cli", *arguments]
    (folder / "in").write_bytes(feed or b"")
    with (
        open(folder / "in", "rb") as stdin,
        open(folder / "out", "wb") as stdout,
        open(folder / "err", "wb") as stderr,
    ):
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )
        rss = wait(process, started + limit)
        seconds = time.monotonic() - started
    out, err = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    return Ran(process.returncode, out, err, seconds, rss)


def wait(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Until it and all that it started have ended; the most memory (KiB) that one of them had."""
    most, pause = 0, 0.02
    while True:
        alive = _alive(process.pid)
        most = max([most, *map(_peak, alive)])
        if not alive:
            process.wait()
            return most
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise TimeoutError(f"{alive} take too long, or were left behind")
        time.sleep(pause)
        # To look at every process costs time that a command of many seconds could use.
        pause = min(pause * 1.1, 0.2)


def _alive(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _peak(process: psutil.Process) -> int:
    # Asked of the kernel while it lives: who reaps the process may be somebody else.
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) if found else 0


class Vmferry:
    """Runs `vmferry`; `folder` is the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def call(self, *arguments: str, feed: bytes | None = None) -> Result:
        """In this process; an exception that nobody caught fails the test."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            return CliRunner().invoke(main, arguments, input=feed, catch_exceptions=False)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, *arguments: str, feed: bytes | None = None, limit: float = PATIENCE) -> Ran:
        """In a process of its own."""
        place = self.folder / "standard"
        place.mkdir(exist_ok=True)
        return run_process(*arguments, feed=feed, limit=limit, folder=place)

    def write(self, name: str, data: bytes) -> str:
        """A file with this content; its path."""
        path = self.folder / name
        path.write_bytes(data)
        return str(path)


@pytest.fixture
def vmferry(tmp_path: Path) -> Vmferry:
    """The command."""
    return Vmferry(tmp_path)


class Streams:
    """The functions above, for tests."""

    piece = staticmethod(piece)
    pages = staticmethod(pages)
    device = staticmethod(device)
    describe = staticmethod(describe)
    changes = staticmethod(changes)
    zipped = staticmethod(zipped)
    opening = staticmethod(opening)
    zeros = staticmethod(zeros)
    closing = staticmethod(closing)
    to_bytes = staticmethod(to_bytes)
    ram_images = staticmethod(ram_images)
    run = staticmethod(run_process)
    blocks = BLOCKS
    page_size = PAGE

    def __init__(self) -> None:
        self.events = small_stream()
        self.small = to_bytes(self.events)
        self.ram = ram_images(self.events)
        self.whole = to_bytes(whole_stream())


@pytest.fixture(scope="session")
def streams() -> Streams:
    """A stream (`events`, as bytes `small`), its RAM, and ways to make more.

    `whole`: as bytes, and with every page of that RAM.
    """
    return Streams()
