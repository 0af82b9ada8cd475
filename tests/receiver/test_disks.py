"""Disks that arrive in a stream, whole or not."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import MigrationError
from vmferry.protocol import events
from vmferry.protocol.section_events import DiskBlock, DiskProgress, EndOfDisks
from vmferry.protocol.wire.marks import SectionType
from vmferry.receiver.coordinator import Receiver

from tests import streams
from tests.disks import MIB, data_bytes, make_room
from tests.fuzz import disks as fuzzed
from tests.qemu.machine import missing

DATA = os.urandom(MIB)


def piece(kind: SectionType, *records: events.Event) -> list[events.Event]:
    """Return a piece of the section of disks."""
    head = events.IterativeSection(0, kind, 9, "block", 0, 1)
    return [head, *records, EndOfDisks(0), events.Footer(0, 9)]


def block(chunk: int, data: bytes | None = DATA, device: str = "disk0") -> DiskBlock:
    return DiskBlock(0, device, chunk * 2048, data)


def stream(*records: events.Event, early: bool = False, percent: int = 99) -> bytes:
    """Return a stream with these records of disks; `early`: before the list of RAM blocks.

    `percent`: what its source has told last of the disks.
    """
    opening = streams.opening()
    at = opening.index(streams.EARLY) if early else len(opening)
    told = [*records, DiskProgress(0, percent)]
    disks = [*piece(SectionType.START), *piece(SectionType.PART, *told)]
    middle = [*opening[:at], *disks, *opening[at:]]
    ends = [*piece(SectionType.END, DiskProgress(0, 100)), *streams.closing()]
    return streams.to_bytes([*middle, *ends])


def receive(folder: Path, data: bytes) -> None:
    """Receive a stream into the folder `guest`. Raises MigrationError."""
    (folder / "stream").write_bytes(data)
    with closing(DirectoryGuest(str(folder / "guest"))) as guest:
        Receiver(guest, f"file:{folder}/stream").run()


def refused(folder: Path, data: bytes) -> str:
    """Return the line with which a stream is refused; nothing of it may look whole."""
    with pytest.raises(MigrationError) as error:
        receive(folder, data)
    assert "\n" not in str(error.value)
    assert not (folder / "guest" / "guest.json").exists()
    images = [path.name for path in folder.glob("guest/disks/*")]
    assert all(name.endswith(".incomplete") for name in images)
    return str(error.value)


def test_blocks_are_written_in_order(tmp_path: Path) -> None:
    """Broken: an older block would replace a newer one, or zeros not be a hole."""
    make_room(tmp_path / "guest", {"disk0": 4 * MIB, "disk1": MIB})
    newer = os.urandom(MIB)
    records = [block(0), block(1), block(2, bytes(MIB)), block(0, None, "disk1"), block(3)]
    receive(tmp_path, stream(*records, block(0, newer), block(3, None)))
    image = tmp_path / "guest" / "disks" / "disk0"
    assert image.read_bytes() == newer + DATA + bytes(2 * MIB)
    assert data_bytes(image) == 2 * MIB
    assert data_bytes(tmp_path / "guest" / "disks" / "disk1") == 0


def test_the_rest_of_a_block_behind_the_end_is_left_out(tmp_path: Path) -> None:
    """Broken: an image would grow beyond its disk, or its last sectors be lost."""
    make_room(tmp_path / "guest", {"disk0": MIB + 1536})
    receive(tmp_path, stream(block(0), block(1)))
    assert (tmp_path / "guest" / "disks" / "disk0").read_bytes() == DATA + DATA[:1536]


def test_an_image_that_is_too_small_is_named(tmp_path: Path) -> None:
    """Broken: the end of a disk would be lost without a word."""
    make_room(tmp_path / "guest", {"disk0": MIB + 1536})
    error = refused(tmp_path, stream(block(0), block(1), block(2, None)))
    assert "disks/disk0: an image of 1050112 bytes is smaller than the disk" in error


@pytest.mark.parametrize(
    ("records", "early", "reason"),
    [
        ([block(0)], True, "before the list of RAM blocks"),
        ([DiskBlock(0, "disk0", 1, None)], False, "sector 1 of 'disk0' begins"),
        ([block(1 << 41, None)], False, "of 'disk0' begins no block"),
        ([block((1 << 30) - 1, None)], False, "disk0: File too large"),
        ([block(0, device="")], False, "a disk without a name arrives"),
        ([block(0, device="." * 255)], False, "File name too long"),
    ],
)
def test_what_no_source_sends_is_refused(
    tmp_path: Path, records: Sequence[events.Event], early: bool, reason: str
) -> None:
    """Broken: a damaged stream would end in a traceback, or harm another file."""
    assert reason in refused(tmp_path, stream(*records, early=early))


@pytest.mark.parametrize(
    "records",
    [
        [block(0, device=""), block(0, DATA[::-1], "")],
        [block(0, device=""), block(1, device=""), DiskProgress(0, 49), block(0, device="")],
        [block(0, device=""), block(0)],
    ],
)
def test_disks_without_names_are_not_mixed(tmp_path: Path, records: Sequence[events.Event]) -> None:
    """Broken: two disks would be written over each other, as nothing tells them apart."""
    make_room(tmp_path / "guest", {"root": 2 * MIB})
    assert "give both an id" in refused(tmp_path, stream(*records))


@pytest.mark.parametrize(
    ("size", "percent", "reason"),
    [
        (8 * MIB, 50, r"only 4194304 of 8388608 bytes have arrived.*downtime-limit is 0"),
        (4 * MIB + 512, 99, r"only 4194304 of 4194816 bytes have arrived"),
        (0, 40, r"told of 40% of its disks, and ended.*downtime-limit is 0"),
    ],
)
def test_a_source_that_left_out_the_rest_is_refused(
    tmp_path: Path, size: int, percent: int, reason: str
) -> None:
    """Broken: what a QEMU 7.2 with a fast link has left out of a disk would be lost."""
    if size:
        make_room(tmp_path / "guest", {"disk0": size})
    assert re.search(reason, refused(tmp_path, stream(*map(block, range(4)), percent=percent)))


def test_a_disk_without_a_name_arrives(tmp_path: Path) -> None:
    """Broken: a disk that QEMU knows by its node alone could not be received."""
    make_room(tmp_path / "guest", {"root": 2 * MIB})
    blocks = [block(chunk, device="") for chunk in (1, 0, 1)]
    receive(tmp_path, stream(DiskProgress(0, 0), DiskProgress(0, 50), *blocks))
    assert (tmp_path / "guest" / "disks" / "root").read_bytes() == DATA + DATA


def test_a_stream_that_is_cut_leaves_half_an_image(tmp_path: Path) -> None:
    """Broken: half a disk would be taken for a whole one."""
    make_room(tmp_path / "guest", {"disk0": 4 * MIB})
    refused(tmp_path, stream(*map(block, range(4)))[: 3 * MIB])
    assert (tmp_path / "guest" / "disks" / "disk0.incomplete").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with room for the RAM and 2 MiB of a disk."""
    if os.geteuid():
        missing("a root user")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.root
def test_a_full_disk_is_named(tmp_path: Path, small_disk: Path) -> None:
    """Broken: a user would not know why the guest did not arrive."""
    (tmp_path / "stream").write_bytes(stream(*map(block, range(8))))
    with (
        closing(DirectoryGuest(str(small_disk / "guest"))) as guest,
        pytest.raises(MigrationError, match=r"guest/disks/disk0: No space left on device"),
    ):
        Receiver(guest, f"file:{tmp_path}/stream").run()
    assert list(small_disk.iterdir()) == []


def test_damaged_variants() -> None:
    """Broken: a source, or whoever damages what it sends, could write where it likes (law 6)."""
    refused = fuzzed.run(220)
    # Most of a stream is what is on a disk, which may be anything.
    assert set(refused) == set(fuzzed.DAMAGES)
    assert refused["record"] + refused["another record"] + refused["name"] > 40
    assert refused["cut"] > 15


def test_a_sound_stream_is_written_by_the_same_code() -> None:
    """Broken: the test above would refuse everything, and prove nothing."""
    images = fuzzed.Images()
    assert fuzzed.receive(fuzzed.STREAM, images) == ""
    images.check()
    assert os.pread(images.fds["disk0"], MIB, 0) == bytes(MIB)
    assert os.fstat(images.fds["disk1"]).st_size == 4 * MIB
    images.close()
