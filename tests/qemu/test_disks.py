"""Disks of a real QEMU 7.2 cross to vmferry, and on to another QEMU 7.2, in the stream."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from vmferry.sender.figures import DiskFigures

from tests.disks import MIB, ODD, data_bytes, make_room, write_image
from tests.patience import PATIENCE, wait_until
from tests.qemu.machine import VMFERRY, Machine, vmferry

MACHINE = "pc-q35-7.2"
"""Type of a machine whose boot disk is called `boot` and has 2 MiB."""
TWO = {"disk0": ODD, "disk1": 8 * MIB}
ONE = {"disk0": 6 * MIB}


def drives(folder: Path, names: Mapping[str, int]) -> list[str]:
    """Return the options of a QEMU for disks with these ids."""
    options = []
    for name in names:
        options += ["-drive", f"file={folder}/{name},format=raw,if=none,id={name}"]
        options += ["-device", f"virtio-blk,drive={name}"]
    return options


def write_meanwhile(source: Machine, names: Mapping[str, int]) -> None:
    """Write to the disks while they are sent, then let the migration end."""
    for number in range(12):
        for name, size in names.items():
            at = number * 700_000 % size // 512 * 512
            length = min(8192, size - at)
            command = f'qemu-io {name} "write -P {number + 1} {at} {length}"'
            source.ask("human-monitor-command", **{"command-line": command})
    answer = source.ask("query-migrate")
    assert answer["status"] == "active", answer
    source.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
    source.wait_for("completed")


def receive_from(source: Machine, saved: Path, names: Mapping[str, int]) -> None:
    """Migrate a QEMU with its disks into a folder."""
    command = [*VMFERRY, "receive", "tcp:127.0.0.1:0", "--guest", f"dir:{saved}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as receiving:
        assert receiving.stderr is not None
        address = receiving.stderr.readline().removeprefix("listening on ").strip()
        source.ask("migrate-set-parameters", **{"max-bandwidth": 8 * MIB})
        source.begin_migration(address, blk=True)
        wait_until(lambda: "disk" in source.ask("query-migrate"))
        # Ours has the same members.
        assert set(source.ask("query-migrate")["disk"]) == set(DiskFigures().as_qmp())
        write_meanwhile(source, names)
        errors = receiving.communicate(timeout=PATIENCE)[1]
    assert receiving.returncode == 0, errors
    assert "disk" not in source.ask("query-migrate")


@pytest.mark.parametrize("sizes", [TWO, ONE], ids=["two, odd", "one"])
@pytest.mark.parametrize("zero_blocks", [True, False])
def test_disks_cross(zero_blocks: bool, sizes: Mapping[str, int], tmp_path: Path) -> None:
    """Broken: a QEMU would refuse our disks, or we its; or they would change on the way."""
    for number, (name, size) in enumerate(sizes.items()):
        write_image(tmp_path / "images" / name, size, number + 3)
    saved, options = tmp_path / "saved", drives(tmp_path / "images", sizes)
    make_room(saved, sizes)
    source = Machine("7.2", tmp_path / "source", *options, machine=MACHINE)
    try:
        source.wait_for_beats()
        if zero_blocks:
            source.enable("zero-blocks")
        receive_from(source, saved, sizes)
        for name in sizes:
            arrived = saved / "disks" / name
            assert arrived.read_bytes() == (tmp_path / "images" / name).read_bytes()
            assert data_bytes(arrived) <= data_bytes(tmp_path / "images" / name)
    finally:
        source.stop()
    # It does not load a disk that ends within a block.
    make_room(tmp_path / "next", {name: -(-size // MIB) * MIB for name, size in sizes.items()})
    uri, options = f"unix:{tmp_path}/out", drives(tmp_path / "next" / "disks", sizes)
    destination = Machine("7.2", tmp_path / "end", *options, "-incoming", uri, machine=MACHINE)
    try:
        sent = vmferry("send", uri, "--guest", f"dir:{saved}", "--disks", "all")
        assert sent.returncode == 0, sent.stderr
        destination.wait_for("completed")
        destination.wait_for_beats()
        for name, size in sizes.items():
            arrived = tmp_path / "next" / "disks" / name
            assert arrived.read_bytes()[:size] == (saved / "disks" / name).read_bytes()
    finally:
        destination.stop()


def node(folder: Path) -> list[str]:
    """Return the options of a QEMU for a disk that only its node names."""
    name = f"driver=raw,node-name=node0,file.driver=file,file.filename={folder}/disk"
    return ["-blockdev", name, "-device", "virtio-blk-device,drive=node0"]


def test_a_disk_with_a_node_name_alone_arrives(tmp_path: Path) -> None:
    """Broken: a QEMU that libvirt starts has only such disks, and could not be received."""
    write_image(tmp_path / "disk", 6 * MIB)
    make_room(tmp_path / "saved", {"root": 6 * MIB})
    stream = tmp_path / "stream"
    # No boot disk beside it: a disk without a name has to be the only one.
    source = Machine("7.2", tmp_path / "source", *node(tmp_path), machine="microvm")
    try:
        source.begin_migration(f"exec:cat > {stream}", blk=True)
        source.wait_for("completed")
    finally:
        source.stop()
    received = vmferry("receive", f"file:{stream}", "--guest", f"dir:{tmp_path}/saved")
    assert received.returncode == 0, received.stderr
    assert (tmp_path / "saved/disks/root").read_bytes() == (tmp_path / "disk").read_bytes()


def test_an_image_that_a_qemu_uses_is_refused(tmp_path: Path) -> None:
    """Broken: a QEMU and vmferry would write the same image."""
    make_room(tmp_path / "saved", {"disk0": 6 * MIB})
    options = drives(tmp_path / "saved" / "disks", ONE)
    write_image(tmp_path / "images" / "disk0", 6 * MIB)
    stream = tmp_path / "stream"
    source = Machine("7.2", tmp_path / "source", *drives(tmp_path / "images", ONE), machine=MACHINE)
    try:
        source.begin_migration(f"exec:cat > {stream}", blk=True)
        source.wait_for("completed")
    finally:
        source.stop()
    user = Machine("7.2", tmp_path / "user", *options, machine=MACHINE)
    try:
        received = vmferry("receive", f"file:{stream}", "--guest", f"dir:{tmp_path}/saved")
        assert received.returncode == 1
        assert "disk0: another process uses this image" in received.stderr
    finally:
        user.stop()
    assert (tmp_path / "saved/disks/disk0").exists()
