"""mapped-ram: pages at their places in a file, bitmaps that tell the truth, and no other files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmferry.guest.errors import MigrationCancelledError, MigrationError
from vmferry.guest.mapping import map_block
from vmferry.guest.parts import DeviceState, RamBlock
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.tracking.digests import DigestTracker
from vmferry.guest.tracking.marks import MarkTracker, mark_writes
from vmferry.guest.tracking.tracker import Tracker
from vmferry.protocol import events
from vmferry.protocol.errors import ParameterError
from vmferry.protocol.pages.mapped_layout import place_blocks
from vmferry.sender import stream
from vmferry.sender.chunks import CHUNK_PAGES, MappedBlock
from vmferry.sender.coordinator import Sender
from vmferry.sender.figures import Figures
from vmferry.sender.mapped_ram.page_writer import FileWriter
from vmferry.sender.mapped_ram.plan import plan_file
from vmferry.sender.parameters import SendParameters
from vmferry.sender.share import Share
from vmferry.sender.sinks import RingSink
from vmferry.sender.sources import StartRound
from vmferry.sender.worker import WORKER_COUNTERS, Worker
from vmferry.transport.channel import Channel
from vmferry.transport.counters import Counters

from tests.qemu.machine import missing
from tests.sender.interrupted import InterruptedPace

PAGE = 4096
COUNTS = (2 * CHUNK_PAGES + 70, 3)
"""Pages of the blocks: several chunks, and less than a byte of bits."""
SPOTS = [(0, 0), (0, 1), (0, 2), (0, 511), (0, 512), (0, 513), (0, 1093), (1, 0), (1, 2)]
"""Pages, by block and number, at the edges of bytes, chunks and blocks."""


class Silent:
    """A ring that nobody reads."""

    def check(self) -> None:
        pass

    def end_round(self, number: int) -> None:
        pass


class Save:
    """Memory of several blocks, and workers that write it into a file, all in one process."""

    def __init__(self, folder: Path, stack: ExitStack, *, workers: int, marks: bool) -> None:
        self.blocks, listed = [], []
        for number, count in enumerate(COUNTS):
            fd = os.memfd_create("ram")
            stack.callback(os.close, fd)
            os.ftruncate(fd, count * PAGE)
            block = RamBlock(f"ram{number}", count * PAGE, PAGE, fd)
            flat = map_block(block)
            tracker: Tracker = DigestTracker(count, PAGE)
            if marks:
                made = mark_writes([flat])
                stack.callback(made.close)
                tracker = MarkTracker(made.pagemap, made.addresses[0], count, PAGE)
            ram = flat.reshape(-1, PAGE)
            self.blocks.append(MappedBlock(block, block.name.encode(), PAGE, ram, tracker))
            listed.append(events.RamBlock(block.name, block.length))
        total = sum(block.length for block in listed)
        placed, self.end = place_blocks(events.RamBlocks(40, total, tuple(listed), PAGE), 0)
        self.plan = plan_file(placed)
        stack.callback(self.plan.memory.close)
        self.file = Channel(os.open(folder / "file", os.O_RDWR | os.O_CREAT | os.O_TRUNC), "file")
        stack.callback(self.file.abort)
        self.workers = [self._worker(stack, Share(n, workers)) for n in range(workers)]

    def _worker(self, stack: ExitStack, share: Share) -> Worker:
        counters, limits = Counters.create(WORKER_COUNTERS), Counters.create(("xbzrle_cache",))
        stack.callback(counters.close)
        stack.callback(limits.close)
        stop = os.eventfd(0)
        stack.callback(os.close, stop)
        self.pace = InterruptedPace(stop, counters, lambda: None)
        writer = FileWriter(self.file, self.pace, cast(RingSink, Silent()), self.plan, PAGE)
        return Worker(share, self.blocks, writer, counters, limits)

    def run_round(self, number: int, *, last: bool = False) -> None:
        """Have every worker make a pass."""
        for worker in self.workers:
            worker.run_round(StartRound(number, tracked=not last))

    def check(self) -> None:
        """Check that the file has what memory has where the bitmaps say so, and no bit for zero
        pages.
        """
        bitmaps = self.plan.bitmaps()
        for block in self.blocks:
            name, count = block.block.name, len(block.ram)
            bits = np.unpackbits(bitmaps[name], bitorder="little")
            assert not bits[count:].any()
            there = bits[:count].astype(bool)
            assert (there == block.ram.any(axis=1)).all()
            raw = os.pread(self.file.fileno(), block.block.length, self._place(name))
            raw = raw.ljust(block.block.length, b"\0")
            stored = np.frombuffer(raw, np.uint8).reshape(-1, PAGE)
            assert (stored[there] == block.ram[there]).all()

    def _place(self, name: str) -> int:
        return self.plan.blocks[name].place.pages_offset


Write = tuple[tuple[int, int], int]


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rounds=st.lists(
        st.lists(st.tuples(st.sampled_from(SPOTS), st.integers(0, 3)), max_size=8),
        min_size=1,
        max_size=4,
    ),
    workers=st.sampled_from([1, 3]),
    marks=st.booleans(),
)
def test_file_and_bitmaps_are_memory(
    rounds: list[list[Write]], workers: int, marks: bool, tmp_path: Path
) -> None:
    """Broken: a page would be lost, stale, at another's place, or zero where it is not."""
    with ExitStack() as stack:
        save = Save(tmp_path, stack, workers=workers, marks=marks)
        for number, writes in enumerate(rounds):
            for (block, page), value in writes:
                save.blocks[block].ram[page] = value
            save.run_round(number, last=number == len(rounds) - 1)
        save.check()


def test_workers_share_no_byte_of_a_bitmap(tmp_path: Path) -> None:
    """Broken: two workers that mark pages at the same time would take each other's bits away."""
    with ExitStack() as stack:
        save = Save(tmp_path, stack, workers=2, marks=False)
        for block in save.blocks:
            block.ram[:] = 1
        own = []
        for worker in save.workers:
            before = {name: bits.copy() for name, bits in save.plan.bitmaps().items()}
            worker.run_round(StartRound(0, tracked=True))
            after = save.plan.bitmaps()
            own.append(np.concatenate([after[name] != before[name] for name in after]))
        assert not (own[0] & own[1]).any()
        save.check()


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("first", [0, 5])
def test_a_write_after_the_copy_is_found(marks: bool, first: int, tmp_path: Path) -> None:
    """Broken (law 1): what the guest writes while a page is on its way would be lost."""
    with ExitStack() as stack:
        save = Save(tmp_path, stack, workers=1, marks=marks)
        ram = save.blocks[0].ram
        save.run_round(0)
        ram[[first, first + 1]] = 1
        save.pace.before.then(lambda: ram.__setitem__(first + 1, 2))
        save.pace.behind.then(lambda: ram.__setitem__(first, 2))
        save.run_round(1)
        save.run_round(2)
        save.run_round(3, last=True)
        save.check()


def test_a_page_that_becomes_zero_while_it_is_written(tmp_path: Path) -> None:
    """Broken (law 1): the destination would have zeros for good, or the old page."""
    with ExitStack() as stack:
        save = Save(tmp_path, stack, workers=1, marks=True)
        ram = save.blocks[0].ram
        ram[7] = 1
        save.pace.before.then(lambda: ram.__setitem__(7, 0))
        save.run_round(0)
        save.run_round(1)
        save.check()
        ram[7] = 3
        save.run_round(2, last=True)
        save.check()


@pytest.fixture
def guest() -> Iterator[SyntheticGuest]:
    guest = SyntheticGuest.parse("16M,dirty-rate=20M")
    yield guest
    guest.close()


def _mapped(**values: Any) -> SendParameters:
    return SendParameters(mapped_ram=True, **values)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("tcp:127.0.0.1:1", "send to file:"),
        ("exec:cat > file", "send to file:"),
        ("file:pipe", "a regular file or a block device"),
        ("file:none/file", "No such file"),
    ],
)
def test_only_files(
    uri: str, message: str, guest: SyntheticGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: pages would be written one behind the other, or a command wait for a reader."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(MigrationError, match=message):
        Sender(guest, uri, _mapped()).run()
    assert os.listdir(tmp_path) == ["pipe"]
    assert guest.running


@pytest.mark.parametrize("there", [False, True])
def test_direct_io_that_is_refused(
    there: bool, guest: SyntheticGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: the old file would be gone, or an empty one be left, for nothing."""
    file, really_open = tmp_path / "file", os.open
    if there:
        file.write_bytes(b"old")

    def refuse(path: Any, flags: int, *more: int, **named: Any) -> int:
        if flags & os.O_DIRECT:
            # So does a file system without direct I/O: it makes the file, and then refuses.
            os.close(really_open(path, flags & ~os.O_DIRECT, *more))
            raise OSError(22, "Invalid argument")
        return really_open(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MigrationError, match=r"file: direct I/O .O_DIRECT. is not possible"):
        Sender(guest, f"file:{file}", _mapped(direct_io=True)).run()
    monkeypatch.undo()
    assert file.read_bytes() == b"old" if there else not file.exists()
    assert guest.running


@pytest.mark.parametrize(
    "values",
    [
        {"xbzrle": True},
        {"compress": "zstd"},
        {"multifd_channels": 2},
        {"workers": 0},
        {"mapped_ram": False, "direct_io": True},
    ],
)
def test_what_does_not_go_together(values: dict[str, Any]) -> None:
    """Broken: a wish would be ignored in silence."""
    with pytest.raises(ParameterError, match="mapped_ram"):
        SendParameters(**{"mapped_ram": True, **values})


def test_dead_worker_leaves_the_guest_running(guest: SyntheticGuest, tmp_path: Path) -> None:
    """Broken (law 5): a killed worker would cost the guest, or leave a file that looks whole."""
    file = tmp_path / "file"
    parameters = _mapped(max_bandwidth=4 << 20, workers=2)
    sender = Sender(guest, f"file:{file}", parameters)

    def kill(figures: Figures) -> None:
        for child in sender._crew._children:
            if figures.transferred and child.name == "vmferry-worker-1":
                child.kill()

    with pytest.raises(MigrationError, match="vmferry-worker-1 died"):
        sender.run(kill)
    assert guest.running
    assert file.read_bytes()[:4] == bytes(4)


@pytest.mark.root
def test_full_disk(guest: SyntheticGuest, tmp_path: Path) -> None:
    """Broken: a file without some of its pages would pass for a saved guest."""
    if os.geteuid():
        missing("a root user")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path], check=True)
    try:
        with pytest.raises(MigrationError, match="file: No space left on device"):
            Sender(guest, f"file:{tmp_path}/file", _mapped(workers=2)).run()
        assert guest.running
        assert (tmp_path / "file").read_bytes()[:4] == bytes(4)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.parametrize("late", [False, True])
def test_failed_over_an_older_save(
    late: bool, guest: SyntheticGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: new pages, with old ones or old devices, would look like one saved guest."""
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    uri = f"file:{file},offset=4096"
    whole = SyntheticGuest.parse("16M,dirty-rate=0")
    try:
        Sender(whole, uri, _mapped(workers=1)).run()
    finally:
        whole.close()
    assert file.read_bytes()[4096:4100] == b"QEVM"
    sender = Sender(guest, uri, _mapped(max_bandwidth=0 if late else 4 << 20, workers=1))

    def fail(_: DeviceState) -> bytes:
        raise MigrationCancelledError("the devices cannot be saved")

    if late:
        monkeypatch.setattr(stream, "devices", fail)
    with pytest.raises(MigrationCancelledError):
        sender.run(lambda figures: sender.cancel() if figures.transferred and not late else None)
    assert guest.running
    data = file.read_bytes()
    assert data[:4] == b"mine"
    assert data[4096:4100] == bytes(4)
