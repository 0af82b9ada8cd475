"""A Linux that writes to its file system, while its disks move from QEMU to QEMU through vmferry.

On demand (`tox -e disks`): booting it without KVM takes a while. It needs QEMU 7.2, a static
busybox, e2fsprogs, and a kernel of Debian's package linux-image-cloud-amd64 with its modules.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.disks import MIB, make_room
from tests.linux import initramfs
from tests.patience import PATIENCE
from tests.qemu.machine import VMFERRY, BareMachine, vmferry

HOPS = int(os.environ.get("VMFERRY_HOPS", "1"))
"""Number of moves of the guest into a folder and on."""
MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
)
BOOT_PATIENCE = 240
"""Seconds that a busy machine may take to boot the guest."""
INIT = b"""#!/bin/busybox sh
/bin/busybox mkdir -p /mnt
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk
do /bin/busybox insmod /$module.ko; done
/bin/busybox mount -t ext4 /dev/vda /mnt
(read word < /dev/ttyS0; echo > /quit) &
i=0
while [ ! -e /quit ]; do
    i=$((i + 1)); n=$((i % 40))
    /bin/busybox dd if=/dev/urandom of=/mnt/file$n bs=16k count=$((i % 7 + 1)) 2> /dev/null
    (cd /mnt; /bin/busybox sha256sum file$n > sum$n)
    [ $((i % 4)) = 0 ] && /bin/busybox sync
    [ -e /dev/vdb ] && /bin/busybox dd if=/mnt/file$n of=/dev/vdb bs=16k seek=$n 2> /dev/null
    echo beat $i
done
cd /mnt
/bin/busybox cat sum* | /bin/busybox sha256sum -c > /sums && echo SUMS ARE RIGHT
cd /
/bin/busybox umount /mnt && echo UNMOUNTED
/bin/busybox sync
echo THE END
while :; do /bin/busybox sleep 100; done
"""


class Linux(BareMachine):
    """A QEMU with Linux on these images, whose console is a socket and a file."""

    def __init__(self, folder: Path, disks: Path, names: Mapping[str, int], *more: str) -> None:
        self.console = folder / "console"
        folder.mkdir()
        drives = [
            option
            for name in names
            for option in (
                *("-drive", f"file={disks}/{name},format=raw,if=none,id={name}"),
                *("-device", f"virtio-blk-pci,drive={name}"),
            )
        ]
        chardev = f"socket,id=con,path={folder}/serial,server=on,wait=off,logfile={self.console}"
        super().__init__(
            "qemu-system-x86_64",
            folder,
            *("-machine", "pc-q35-7.2", "-m", "128", "-chardev", chardev, "-serial", "chardev:con"),
            *drives,
            *more,
        )
        self._serial = folder / "serial"

    def says(self) -> str:
        """Return what is on the console."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait_to_say(self, text: str, count: int = 1) -> None:
        """Wait until the console has this text so many times."""
        deadline = time.monotonic() + BOOT_PATIENCE
        while self.says().count(text) < count:
            assert time.monotonic() < deadline, self.says()[-2000:]
            time.sleep(0.2)

    def tell(self, line: str) -> None:
        """Type a line."""
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(self._serial))
            console.sendall(line.encode() + b"\n")
            # The guest has read it when it goes on to the end.
            self.wait_to_say("THE END")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the options with which a QEMU boots the guest's Linux."""
    kernels = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"))
    busybox = shutil.which("busybox")
    if not kernels or busybox is None or "VMFERRY_DISKS" not in os.environ:
        pytest.skip("on demand (VMFERRY_DISKS): needs linux-image-cloud-amd64 and busybox")
    version = kernels[-1].name.removeprefix("vmlinuz-")
    program = (0o755, Path(busybox).read_bytes())
    files: initramfs.Files = {"init": (0o755, INIT), "bin/busybox": program, "bin/sh": program}
    for module in MODULES:
        path = Path(f"/lib/modules/{version}/kernel/{module}.ko")
        files[path.name] = (0o644, path.read_bytes())
    archive = tmp_path_factory.mktemp("linux") / "initramfs"
    initramfs.write(files, archive)
    append = "console=ttyS0 quiet panic=-1 tsc=unstable"
    return ["-kernel", str(kernels[-1]), "-initrd", str(archive), "-append", append]


def to_folder(source: Linux, saved: Path) -> None:
    """Move the running guest with its disks into a folder."""
    command = [*VMFERRY, "receive", "tcp:127.0.0.1:0", "--guest", f"dir:{saved}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as receiving:
        assert receiving.stderr is not None
        address = receiving.stderr.readline().removeprefix("listening on ").strip()
        # With a longer limit, this QEMU leaves out a part of the disks.
        limits = {"max-bandwidth": 64 * MIB, "downtime-limit": 1}
        source.ask("migrate-set-parameters", **limits)
        source.begin_migration(address, blk=True)
        source.wait_to_say("beat", source.says().count("beat") + 5)
        source.ask("migrate-set-parameters", **{"max-bandwidth": 400 * MIB, "downtime-limit": 2})
        source.wait_for("completed")
        errors = receiving.communicate(timeout=PATIENCE)[1]
    assert receiving.returncode == 0, errors


def assert_equal(one: Path, other: Path, names: Mapping[str, int]) -> None:
    """Check that the disks in both folders are equal; the second may be longer, to whole blocks."""
    for name in names:
        first, second = (one / name).read_bytes(), (other / name).read_bytes()
        assert first == second[: len(first)], name


@pytest.mark.parametrize("zero_blocks", [True, False])
@pytest.mark.parametrize(
    "sizes", [{"disk0": 24 * MIB}, {"disk0": 24 * MIB, "disk1": 3 * MIB + 512}], ids=["one", "two"]
)
def test_a_file_system_crosses_while_it_is_written(
    system: list[str], sizes: dict[str, int], zero_blocks: bool, tmp_path: Path
) -> None:
    """Broken: a guest's files would be damaged on their way."""
    images = tmp_path / "images" / "disks"
    make_room(images.parent, sizes)
    subprocess.run(["mkfs.ext4", "-q", str(images / "disk0")], check=True)
    machine = Linux(tmp_path / "first", images, sizes, *system)
    try:
        machine.wait_to_say("beat", 3)
        for hop in range(HOPS):
            saved, following = tmp_path / f"saved{hop}", tmp_path / f"next{hop}"
            if zero_blocks:
                machine.enable("zero-blocks")
            make_room(saved, {name: (images / name).stat().st_size for name in sizes})
            to_folder(machine, saved)
            machine.stop()
            assert_equal(images, saved / "disks", sizes)
            make_room(following, {name: -(-size // MIB) * MIB for name, size in sizes.items()})
            uri, images = f"unix:{tmp_path}/in{hop}", following / "disks"
            options = ("-S", "-incoming", uri)
            machine = Linux(tmp_path / f"qemu{hop}", images, sizes, *system, *options)
            sent = vmferry("send", uri, "--guest", f"dir:{saved}", "--disks", "all")
            assert sent.returncode == 0, sent.stderr
            machine.wait_for("completed")
            assert_equal(saved / "disks", images, sizes)
            machine.ask("cont")
            machine.wait_to_say("beat", 3)
        machine.tell("quit")
        assert "SUMS ARE RIGHT" in machine.says()
        assert "UNMOUNTED" in machine.says()
    finally:
        machine.stop()
    checked = subprocess.run(
        ["e2fsck", "-fn", str(images / "disk0")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
