"""Disks that move with their guest."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.disks.image import Disk
from vmferry.guest.errors import MigrationError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol.errors import ParameterError
from vmferry.protocol.section_events import DiskBlock, DiskProgress
from vmferry.receiver.coordinator import ReceiveParameters
from vmferry.sender.coordinator import Sender
from vmferry.sender.disks.writer import ChunkWriter, ImageError
from vmferry.sender.figures import Figures
from vmferry.sender.parameters import SendParameters
from vmferry.transport.settings import Disks, TrackerKind

from tests import streams
from tests.disks import MIB, ODD, data_bytes, make_guest, make_room, move, move_folder, write_image
from tests.patience import wait_until
from tests.qemu.machine import VMFERRY
from tests.sender.test_disk_scanner import Slots

SIZES = {"disk0": ODD, "disk1": 8 * MIB}


def assert_same_disks(source: Path, destination: Path) -> None:
    """Check that images of both folders have equal content and equal holes."""
    for image in (source / "disks").iterdir():
        arrived = destination / "disks" / image.name
        assert arrived.read_bytes() == image.read_bytes()
        assert data_bytes(arrived) <= data_bytes(image)


@pytest.mark.parametrize("zero_blocks", [True, False])
@pytest.mark.parametrize(
    "ram",
    [
        {"workers": 0},
        {"workers": 2, "xbzrle": True},
        {"workers": 0, "compress": "zstd:1"},
        {"workers": 2, "compress": "adaptive"},
    ],
)
def test_disks_arrive(tmp_path: Path, zero_blocks: bool, ram: dict[str, Any]) -> None:
    """Broken: a disk would be damaged on its way, or grow to its full size on the other side."""
    make_guest(tmp_path / "a", SIZES)
    make_room(tmp_path / "b", SIZES)
    parameters = SendParameters(disks=Disks.ALL, zero_blocks=zero_blocks, **ram)
    moved = move_folder(tmp_path / "a", tmp_path / "b", parameters)
    assert (moved.sending, moved.receiving) == ("", "")
    assert_same_disks(tmp_path / "a", tmp_path / "b")
    assert moved.figures is not None
    assert moved.figures.disk is not None
    assert moved.figures.disk.transferred == moved.figures.disk.total == sum(SIZES.values())
    with closing(DirectoryGuest(str(tmp_path / "b"))) as guest:
        assert {disk.name: disk.size for disk in guest.disks} == SIZES


def test_old_content_is_overwritten(tmp_path: Path) -> None:
    """Broken: where the source has zeros, what was in the image before would show through."""
    make_guest(tmp_path / "a", {"disk0": 4 * MIB})
    make_room(tmp_path / "b", {})
    (tmp_path / "b" / "disks" / "disk0").write_bytes(os.urandom(4 * MIB))
    moved = move_folder(tmp_path / "a", tmp_path / "b", SendParameters(disks=Disks.ALL))
    assert (moved.sending, moved.receiving) == ("", "")
    assert_same_disks(tmp_path / "a", tmp_path / "b")


def test_without_an_image_one_is_made(tmp_path: Path) -> None:
    """Broken: a disk could not be received where nobody knows its size."""
    make_guest(tmp_path / "a", {"disk0": ODD})
    moved = move_folder(tmp_path / "a", tmp_path / "b", SendParameters(disks=Disks.ALL))
    assert (moved.sending, moved.receiving) == ("", "")
    made = (tmp_path / "b" / "disks" / "disk0").read_bytes()
    assert len(made) == 6 * MIB
    assert made[:ODD] == (tmp_path / "a" / "disks" / "disk0").read_bytes()
    assert not any(made[ODD:])


def test_disks_stay_unless_wanted(tmp_path: Path) -> None:
    """Broken: a disk that both hosts share would be sent, and written over."""
    make_guest(tmp_path / "a", {"disk0": MIB})
    moved = move_folder(tmp_path / "a", tmp_path / "b", SendParameters())
    assert (moved.sending, moved.receiving) == ("", "")
    assert not (tmp_path / "b" / "disks").exists()


def test_blocks_and_progress_are_in_order(tmp_path: Path) -> None:
    """Broken: a QEMU would show nonsense, or lack a block."""
    make_guest(tmp_path / "a", {"disk0": 3 * MIB})
    out = tmp_path / "stream"
    with closing(DirectoryGuest(str(tmp_path / "a"))) as guest:
        Sender(guest, f"file:{out}", SendParameters(disks=Disks.ALL)).run()
    found = streams.read_file(out)
    blocks = [event.sector for event in found if isinstance(event, DiskBlock)]
    assert blocks == [0, 2048, 4096]
    percents = [event.percent for event in found if isinstance(event, DiskProgress)]
    assert percents == [33, 66, 99, 100]


def refused(tmp_path: Path, parameters: SendParameters) -> str:
    moved = move_folder(tmp_path / "a", tmp_path / "b", parameters)
    assert moved.figures is None
    assert "\n" not in moved.sending
    # Nothing arrived: the destination was free to take another guest in.
    assert not (tmp_path / "b" / "guest.json").exists()
    return moved.sending


def test_top_of_a_raw_image_is_refused(tmp_path: Path) -> None:
    """Broken: a user would take a part of a disk for what was changed on it."""
    make_guest(tmp_path / "a", {"disk0": MIB})
    assert "raw image without a backing" in refused(tmp_path, SendParameters(disks=Disks.TOP))


def test_disks_have_no_place_in_mapped_ram() -> None:
    """Broken: a file would be written that no QEMU reads."""
    with pytest.raises(ParameterError, match="disks"):
        SendParameters(mapped_ram=True, disks=Disks.ALL)


BUSY = "16M,dirty-rate=4M,hot=1M,disk-rate=6M"


@pytest.mark.parametrize(
    ("tracker", "ram"),
    [
        (TrackerKind.AUTO, {"workers": 0}),
        (TrackerKind.AUTO, {"workers": 2, "compress": "adaptive"}),
        (TrackerKind.AUTO, {"workers": 1, "xbzrle": True, "zero_blocks": False}),
        (TrackerKind.AUTO, {"multifd_channels": 2}),
        (TrackerKind.DIGESTS, {"workers": 0}),
    ],
)
def test_a_guest_that_writes_its_disks_arrives(
    tmp_path: Path, tracker: TrackerKind, ram: dict[str, Any]
) -> None:
    """Broken: what the guest wrote while a disk was sent would be lost or torn (law 1 and 3)."""
    images = {folder: [tmp_path / folder / name for name in "01"] for folder in "ab"}
    for number, image in enumerate(images["a"]):
        write_image(image, 20 * MIB + number * 512, number)
    (tmp_path / "b").mkdir()
    images["b"][1].write_bytes(os.urandom(20 * MIB + 512))
    here, there = (",".join(f"disk={path}" for path in images[folder]) for folder in "ab")
    channels = ram.get("multifd_channels")
    received = ReceiveParameters(paused=True, multifd_channels=channels)
    parameters = SendParameters(
        disks=Disks.ALL, tracker=tracker, max_bandwidth=40 * MIB, downtime_limit=0.02, **ram
    )
    with (
        closing(SyntheticGuest.parse(f"{BUSY},{here}")) as source,
        closing(SyntheticGuest.parse(there, incoming=True)) as arrived,
    ):
        moved = move(source, arrived, parameters, received)
        assert (moved.sending, moved.receiving) == ("", "")
        assert moved.figures is not None
        assert moved.figures.dirty_sync_count >= 2
        assert moved.figures.disk is not None
        assert moved.figures.disk.transferred > moved.figures.disk.total
        assert arrived.verify() == []
        for before, after in zip(images["a"], images["b"], strict=True):
            assert after.read_bytes()[: before.stat().st_size] == before.read_bytes()
        arrived.resume()
        wait_until(lambda: (tmp_path / "b" / "0").read_bytes() != images["a"][0].read_bytes())
        arrived.pause()
        assert arrived.verify() == []


def test_disks_of_a_running_guest_have_to_come(tmp_path: Path) -> None:
    """Broken: a guest would run on without its disks."""
    write_image(tmp_path / "a", MIB)
    with (
        closing(SyntheticGuest.parse(f"1M,disk={tmp_path}/a")) as source,
        closing(SyntheticGuest.parse("", incoming=True)) as arrived,
    ):
        moved = move(source, arrived)
        assert "send --disks all" in moved.receiving
        assert source.running


def test_a_full_disk_leaves_the_guest_running(tmp_path: Path) -> None:
    """Broken: a destination that has no room for a disk would cost the guest (law 5)."""
    write_image(tmp_path / "a", 8 * MIB)
    write_image(tmp_path / "b", 4 * MIB)
    with (
        closing(SyntheticGuest.parse(f"1M,disk={tmp_path}/a,disk-rate=1M")) as source,
        closing(SyntheticGuest.parse(f"disk={tmp_path}/b", incoming=True)) as arrived,
    ):
        moved = move(source, arrived, SendParameters(disks=Disks.ALL))
        assert "b: an image of 4194304 bytes is smaller" in moved.receiving
        assert moved.sending
        assert source.running
        assert source.verify() == []
    assert not (tmp_path / "b").exists()
    assert (tmp_path / "b.incomplete").exists()


def test_a_killed_receiver_leaves_the_guest_running(tmp_path: Path) -> None:
    """Broken: a destination that dies would cost the guest, or leave what looks like its disk."""
    write_image(tmp_path / "a", 20 * MIB)
    make_room(tmp_path / "b", {"disk0": 20 * MIB})
    command = [*VMFERRY, "receive", "tcp:127.0.0.1:0", "--guest", f"dir:{tmp_path}/b"]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as receiving,
        closing(SyntheticGuest.parse(f"1M,disk={tmp_path}/a,disk-rate=1M")) as source,
    ):
        assert receiving.stderr is not None
        address = receiving.stderr.readline().removeprefix("listening on ").strip()
        sender = Sender(source, address, SendParameters(disks=Disks.ALL, max_bandwidth=4 * MIB))

        def kill(figures: Figures) -> None:
            if figures.transferred > 2 * MIB:
                receiving.kill()

        with pytest.raises(MigrationError):
            sender.run(kill)
        assert source.running
        assert source.verify() == []
    # The command's processes are gone, or remove what is left.
    wait_until(lambda: [path.name for path in (tmp_path / "b").iterdir()] == ["disks"])
    assert {path.name for path in (tmp_path / "b" / "disks").iterdir()} == {"disk0.incomplete"}


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Broken: a user would not know which disk has failed, and where."""
    write_image(tmp_path / "image", MIB)
    fd = os.open(tmp_path / "image", os.O_WRONLY)
    writer = ChunkWriter(Slots(), 9, zero_blocks=True)
    with pytest.raises(ImageError, match=r"image: Bad file descriptor at offset 0$"):
        writer.read(Disk("disk0", MIB, fd, f"{tmp_path}/image"), 0)
    os.close(fd)


def cut_short(image: Path) -> None:
    os.truncate(image, 2 * MIB + 4096)


def cut_in_a_hole(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(4 * MIB)
        file.truncate(6 * MIB)
        file.truncate(5 * MIB)


@pytest.mark.parametrize("damage", [cut_short, cut_in_a_hole])
def test_an_image_that_is_cut_short_is_named(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Broken: the rest of a disk that lost its end would be sent as zeros."""
    make_guest(tmp_path / "a", {"disk0": 6 * MIB})
    make_room(tmp_path / "b", {"disk0": 6 * MIB})
    with (
        closing(DirectoryGuest(str(tmp_path / "a"))) as here,
        closing(DirectoryGuest(str(tmp_path / "b"))) as there,
    ):
        damage(tmp_path / "a" / "disks" / "disk0")
        moved = move(here, there, SendParameters(disks=Disks.ALL))
    assert "disk0: was cut short to" in moved.sending
    assert moved.receiving
    # It may have failed before anything arrived.
    untouched = tmp_path / "b" / "disks" / "disk0"
    assert not untouched.exists() or not any(untouched.read_bytes())
    assert not (tmp_path / "b" / "guest.json").exists()
