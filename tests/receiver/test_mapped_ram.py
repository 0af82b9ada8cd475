"""mapped-ram files that are read by several processes at once, whoever wrote them."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmferry.guest.errors import MigrationError
from vmferry.guest.mapping import is_hole, map_block
from vmferry.guest.open import open_guest
from vmferry.guest.parts import RamBlock
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol import events
from vmferry.protocol.reader import StreamReader
from vmferry.receiver.coordinator import ReceiveParameters, Receiver
from vmferry.receiver.figures import Figures
from vmferry.receiver.mapped_ram.memory import READER_COUNTERS, PageReader, SavedFile
from vmferry.sender.coordinator import Sender
from vmferry.sender.parameters import SendParameters
from vmferry.transport.channel import Channel
from vmferry.transport.counters import Counters
from vmferry.transport.settings import TrackerKind

from tests.protocol.kinds import mapped

PAGE = 4096
COUNT = 700


def listed_in(data: bytes) -> events.RamBlocks:
    """Return the list of RAM blocks of a stream."""
    reader = StreamReader()
    (found,) = (event for event in reader.feed(data) if isinstance(event, events.RamBlocks))
    return found


def restore(
    file: Path, listed: events.RamBlocks, start: int, workers: int, garbage: set[int]
) -> dict[str, bytes]:
    """Read all shares of a file into memory, of which some pages hold something before."""
    with ExitStack() as stack:
        blocks = []
        for block in listed.blocks:
            fd = os.memfd_create("ram")
            stack.callback(os.close, fd)
            os.ftruncate(fd, block.length)
            for page in garbage:
                os.pwrite(fd, b"x" * listed.page_size, page * listed.page_size)
            blocks.append(RamBlock(block.name, block.length, listed.page_size, fd))
        channel = Channel(os.open(file, os.O_RDONLY), "file")
        stack.callback(channel.abort)
        for index in range(workers):
            counters = Counters.create(READER_COUNTERS)
            stack.callback(counters.close)
            reader = PageReader(
                SavedFile(channel, channel, start),
                tuple(blocks),
                index=index,
                count=workers,
                counters=counters,
                check=lambda: None,
            )
            reader.read(listed)
        if not garbage:
            for block, made in zip(listed.blocks, blocks, strict=True):
                assert is_hole(made, 0, block.length) or map_block(made).any()
        return {block.name: map_block(block).tobytes() for block in blocks}


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pages=st.lists(st.sets(st.integers(0, COUNT - 1), max_size=30), min_size=1, max_size=3),
    garbage=st.sets(st.integers(0, COUNT - 1), max_size=9),
    workers=st.sampled_from([1, 2, 3]),
    start=st.sampled_from([0, 512, 1 << 20]),
)
def test_memory_is_what_the_file_says(
    pages: list[set[int]], garbage: set[int], workers: int, start: int, tmp_path: Path
) -> None:
    """Broken: a page would be lost, at another's place, or keep what memory held before."""
    named = {f"ram{number}": sorted(found) for number, found in enumerate(pages)}
    data, images = mapped(named, file_offset=start, count=COUNT)
    file = tmp_path / "file"
    file.write_bytes(bytes(start) + data)
    assert restore(file, listed_in(data), start, workers, garbage) == images


@pytest.mark.parametrize("page_size", [256, 1 << 16])
def test_other_page_sizes(page_size: int, tmp_path: Path) -> None:
    """Broken: guests of other architectures would get other memory."""
    data, images = mapped({"ram": [0, 1, 5, 69], "none": []}, page_size=page_size, count=70)
    (tmp_path / "file").write_bytes(data)
    assert restore(tmp_path / "file", listed_in(data), 0, 2, {3, 5}) == images


def receive(
    file: Path, folder: Path, *, uri: str = "", workers: int = 2, direct_io: bool = False
) -> Figures:
    """Receive a file into a new folder."""
    guest = open_guest(f"dir:{folder}", incoming=True)
    parameters = ReceiveParameters(workers=workers, direct_io=direct_io)
    try:
        return Receiver(guest, uri or f"file:{file}", parameters).run()
    finally:
        guest.close()


def images_in(folder: Path) -> dict[str, bytes]:
    """Return the RAM of a guest in a folder."""
    blocks = json.loads((folder / "guest.json").read_text())["blocks"]
    return {block["name"]: (folder / "ram" / block["file"]).read_bytes() for block in blocks}


@pytest.mark.parametrize(
    ("workers", "offset", "direct_io"), [(0, 0, False), (1, 4096, True), (3, 1000, False)]
)
def test_a_file_is_received(workers: int, offset: int, direct_io: bool, tmp_path: Path) -> None:
    """Broken: the parts of the path would not fit together, or the guest keep a file's capability,

    with which it could not be sent on as an ordinary stream.
    """
    data, images = mapped({"ram": [0, 300, 699], "none": [], "rom": [*range(COUNT)]}, count=COUNT)
    if offset:
        data, images = mapped({"ram": [0, 300], "rom": [5]}, file_offset=offset, count=COUNT)
    (tmp_path / "file").write_bytes(bytes(offset) + data)
    uri = f"file:{tmp_path}/file,offset={offset}"
    figures = receive(tmp_path, tmp_path / "guest", uri=uri, workers=workers, direct_io=direct_io)
    assert images_in(tmp_path / "guest") == images
    assert figures.normal + figures.duplicate == len(images) * COUNT
    kept = json.loads((tmp_path / "guest" / "guest.json").read_text())
    assert kept["machine"]["capabilities"] is None
    description = next((tmp_path / "guest").rglob("*description*"), None)
    assert description is None or "mapped-ram" not in description.read_text()


def refusal(file: Path, folder: Path, uri: str = "") -> str:
    """Return why a file is not received, and check that no folder is left."""
    with pytest.raises(MigrationError) as caught:
        receive(file, folder, uri=uri)
    assert not folder.exists()
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("part", ["list", "bitmap", "pages", "end of pages", "behind"])
def test_a_file_that_ends_early(part: str, tmp_path: Path) -> None:
    """Broken (law 4): pages that are not there would count as zero, and the guest be started."""
    data, _ = mapped({"ram": [1, 699], "rom": [2, 699]})
    place = listed_in(data).blocks[1].mapped
    assert place is not None
    ends = {
        "list": place.bitmap_offset - 5,
        "bitmap": place.bitmap_offset + 20,
        "pages": place.pages_offset + 2 * PAGE + 1000,
        "end of pages": place.pages_offset + 700 * PAGE - 1,
        "behind": place.pages_offset + 700 * PAGE + 3,
    }
    (tmp_path / "file").write_bytes(data[: ends[part]])
    message = refusal(tmp_path / "file", tmp_path / "guest")
    assert "past the end of the file" in message or "the stream ends early" in message
    assert "multifd" not in message


def test_a_bit_behind_the_last_page(tmp_path: Path) -> None:
    """Broken (law 6): a page would be put behind its block."""
    data, _ = mapped({"ram": [1]}, count=700)
    place = listed_in(data).blocks[0].mapped
    assert place is not None
    at = place.bitmap_offset + 700 // 8
    wrong = data[:at] + bytes([data[at] | 1 << 700 % 8]) + data[at + 1 :]
    (tmp_path / "file").write_bytes(wrong)
    assert "has a page 700 of 700" in refusal(tmp_path / "file", tmp_path / "guest")


def test_only_a_file_as_it_is(tmp_path: Path) -> None:
    """Broken: pages would be taken from where they are not."""
    file = tmp_path / "file"
    file.write_bytes(mapped({"ram": [1]})[0])
    only = "a mapped-ram stream is received from a file"
    assert only in refusal(file, tmp_path / "guest", f"exec:cat {file}")
    subprocess.run(["zstd", "-q", file], check=True)
    assert only in refusal(file, tmp_path / "guest", f"file:{file}.zst")
    guest = open_guest(f"dir:{tmp_path}/guest", incoming=True)
    with pytest.raises(MigrationError, match="only a file"):
        Receiver(guest, "tcp:127.0.0.1:0", ReceiveParameters(direct_io=True)).run()
    guest.close()


def test_a_block_that_is_left_out(tmp_path: Path) -> None:
    """Broken: memory that is elsewhere would be zero."""
    data = bytearray(mapped({"ram": [1], "rom": []})[0])
    listed = listed_in(bytes(data))
    place = listed.blocks[1].mapped
    assert place is not None
    # The two offsets, which stand before the bitmap, are 0, and no bitmap and pages follow.
    data[place.bitmap_offset - 16 : place.pages_offset + COUNT * PAGE] = bytes(16)
    (tmp_path / "file").write_bytes(data)
    message = refusal(tmp_path / "file", tmp_path / "guest")
    assert "block rom, which is left out, is not supported" in message


def test_a_dead_reader_fails_the_migration(tmp_path: Path) -> None:
    """Broken (law 4): the share of a reader that died would be zero."""
    data, _ = mapped({"ram": [*range(COUNT)]}, count=COUNT)
    (tmp_path / "file").write_bytes(data)
    guest = open_guest(f"dir:{tmp_path}/guest", incoming=True)
    receiver = Receiver(guest, f"file:{tmp_path}/file", ReceiveParameters(workers=2))
    start = receiver._crew.start

    def start_and_kill(name: str, *arguments: object) -> object:
        child = start(name, *arguments)  # type: ignore[arg-type]
        if name == "vmferry-reader-1":
            child.kill()
            child.wait(None)
        return child

    receiver._crew.start = start_and_kill  # type: ignore[method-assign,assignment]
    try:
        with pytest.raises(MigrationError, match="vmferry-reader-1 died"):
            receiver.run()
    finally:
        guest.close()
    assert not (tmp_path / "guest").exists()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("tracker", "direct_io"), [(TrackerKind.USERFAULTFD, True), (TrackerKind.DIGESTS, False)]
)
def test_live_guest_is_saved_and_restored(
    tracker: TrackerKind, direct_io: bool, workers: int, tmp_path: Path
) -> None:
    """Broken: laws 1 or 3; a page would be torn, stale or lost, or a bit of a bitmap lost."""
    source = SyntheticGuest.parse("32M,dirty-rate=60M,hot=8M,pattern=zeroing")
    target = SyntheticGuest.parse("")
    parameters = SendParameters(
        mapped_ram=True,
        workers=workers,
        tracker=tracker,
        direct_io=direct_io,
        max_bandwidth=120 << 20,
        downtime_limit=0.01,
    )
    uri = f"file:{tmp_path}/file"
    try:
        sent = Sender(source, uri, parameters).run()
        assert sent.dirty_sync_count >= 2
        assert not source.running
        received = Receiver(
            target, uri, ReceiveParameters(workers=workers, paused=True, direct_io=direct_io)
        ).run()
        assert received.normal + received.duplicate == (32 + 1) * 256
        assert (source.page_digests() == target.page_digests()).all()
        assert target.verify() == []
        before = target.counter()
        target.resume()
        while target.counter() == before:
            pass
        target.pause()
        assert target.verify() == []
    finally:
        source.close()
        target.close()


def test_a_window_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: scattered pages would take a system call each."""
    data, images = mapped({"ram": [*range(0, COUNT, 2)]}, count=COUNT)
    (tmp_path / "file").write_bytes(data)
    read, reads = os.preadv, 0

    def counted(fd: int, views: list[memoryview], place: int) -> int:
        nonlocal reads
        reads += 1
        return read(fd, views, place)

    monkeypatch.setattr(os, "preadv", counted)
    assert restore(tmp_path / "file", listed_in(data), 0, 1, set()) == images
    assert reads == -(-COUNT // 256)
    assert np.frombuffer(images["ram"], np.uint8).any()
