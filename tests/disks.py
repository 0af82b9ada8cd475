"""Guests at rest that have disks, and migrations of them within one test."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vmferry.guest.base import Guest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import MigrationError
from vmferry.guest.file_names import quoted
from vmferry.guest.parts import DeviceSection, DeviceState
from vmferry.receiver.coordinator import ReceiveParameters, Receiver
from vmferry.sender.coordinator import Sender
from vmferry.sender.figures import Figures
from vmferry.sender.parameters import SendParameters

from tests import streams
from tests.guest.at_rest import LAYOUT, MACHINE
from tests.patience import PATIENCE

MIB = 1 << 20
STATE = DeviceState(
    early=(),
    sections=tuple(
        DeviceSection(found.section_id, found.name, found.instance_id, found.version, found.payload)
        for found in streams.DEVICES
    ),
    description=streams.description(streams.DEVICES).text,
    ram_section_id=2,
)
"""Devices that a stream can carry to its end."""
ODD = 5 * MIB + 3 * 512
"""A size that ends within a block."""


def write_image(path: Path, size: int, seed: int = 1) -> None:
    """Make an image of this size: holes, whole blocks of data, and some bytes here and there."""
    bits = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
        for block in range(0, size, MIB):
            if bits.random() < 0.5:
                file.seek(block)
                file.write(bits.randbytes(min(MIB, size - block) // bits.choice((1, 1, 300))))
        file.seek(size - 512)
        file.write(b"the end of the disk".ljust(512))


def make_guest(path: Path, sizes: Mapping[str, int]) -> None:
    """Make a guest at rest with disks of these sizes, whose content depends on their names."""
    for name, size in sizes.items():
        write_image(path / "disks" / quoted(name), size, seed=len(name) * 7 + ord(name[-1]))
    guest = DirectoryGuest(str(path))
    guest.prepare(MACHINE, LAYOUT)
    guest.load_devices(MACHINE, STATE)
    for name in sizes:
        guest.prepare_disk(name)
    guest.invalidate_caches()
    guest.seal(running=True)
    guest.complete(running=True)
    guest.close()


def make_room(path: Path, sizes: Mapping[str, int]) -> None:
    """Make empty images of these sizes for a guest that is to arrive."""
    (path / "disks").mkdir(parents=True)
    for name, size in sizes.items():
        with (path / "disks" / name).open("wb") as file:
            file.truncate(size)


def data_bytes(path: Path) -> int:
    """Return the bytes that the file takes on its disk."""
    return os.stat(path).st_blocks * 512


@dataclass
class Moved:
    """The outcome of a migration at both sides."""

    figures: Figures | None = None
    sending: str = ""
    """The error of the source."""
    receiving: str = ""
    """The error of the destination."""


def move(
    source: Guest,
    destination: Guest,
    parameters: SendParameters | None = None,
    received: ReceiveParameters | None = None,
) -> Moved:
    """Move a guest, and return how that ended."""
    moved, listening, addresses = Moved(), threading.Event(), list[str]()
    receiver = Receiver(destination, "tcp:127.0.0.1:0", received)

    def heard(address: str) -> None:
        addresses.append(address)
        listening.set()

    def receive() -> None:
        try:
            receiver.run(on_listening=heard)
        except MigrationError as error:
            moved.receiving = str(error)
        finally:
            listening.set()

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    assert listening.wait(PATIENCE)
    if addresses:
        try:
            moved.figures = Sender(source, addresses[0], parameters).run()
        except MigrationError as error:
            moved.sending = str(error)
            receiver.cancel()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return moved


def move_folder(source: Path, destination: Path, parameters: SendParameters) -> Moved:
    """Move a guest at rest from a folder to another one."""
    with (
        closing(DirectoryGuest(str(source))) as here,
        closing(DirectoryGuest(str(destination))) as there,
    ):
        return move(here, there, parameters)
