"""Open what guest.json names: RAM files, to be mapped, disks, and device files, to be read.

Each must be a regular file in the guest's own folders, with the size that guest.json states.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..protocol.errors import StreamError
from ..protocol.sections.dirty_bitmap import check_chunks
from . import directory_files as files
from .directory_format import Contents
from .directory_rules import (
    MAX_BITMAPS,
    MAX_DEVICE_STATE,
    BlockFile,
    DiskFile,
    FormatError,
    SectionFile,
    shown,
)
from .disks.image import Disk, lock
from .parts import DeviceSection, DeviceState, RamBlock

RAM = "ram"
DEVICES = "devices"
DISKS = "disks"
BITMAPS = "dirty-bitmaps"
"""Name of the file in DEVICES with the chunks of dirty bitmaps, as they are in a stream."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Raise FormatError that begins with `where`, for an OSError about a file."""
    try:
        yield
    except OSError as error:
        raise FormatError(f"{where} {error.strerror}") from error


@contextmanager
def subfolder(folder: int, name: str) -> Iterator[int]:
    """Open a folder of the guest. Raises FormatError."""
    with naming(f"folder {name!r}"):
        fd = files.open_folder(folder, name)
    try:
        yield fd
    finally:
        os.close(fd)


def open_blocks(folder: int, blocks: Sequence[BlockFile]) -> tuple[RamBlock, ...]:
    """Return the RAM blocks with open descriptors. Raises FormatError, leaving none open."""
    opened: list[RamBlock] = []
    with subfolder(folder, RAM) as ram, ExitStack() as failed:
        for index, block in enumerate(blocks):
            where, layout = f"blocks[{index}].file {shown(block.file)}", block.layout
            with naming(where):
                fd = files.open_file(ram, block.file, os.O_RDWR)
            failed.callback(os.close, fd)
            opened.append(RamBlock(layout.name, layout.length, layout.page_size, fd))
            size = os.fstat(fd).st_size
            if size != layout.length:
                raise FormatError(f"{where} has {size} bytes, its block {layout.length}")
        check_mappable(opened)
        failed.pop_all()
    return tuple(opened)


def open_disks(folder: int, disks: Sequence[DiskFile], path: str) -> tuple[Disk, ...]:
    """Return the disks with open, locked descriptors. Raises FormatError, leaving none open.

    `path` is that of the folder, for messages. Raises GuestError if another process uses an image.
    """
    if not disks:
        return ()
    opened: list[Disk] = []
    with subfolder(folder, DISKS) as images, ExitStack() as failed:
        for index, disk in enumerate(disks):
            where = f"disks[{index}].file {shown(disk.file)}"
            with naming(where):
                flags = os.O_RDONLY if disk.read_only else os.O_RDWR
                fd = files.open_file(images, disk.file, flags)
            failed.callback(os.close, fd)
            image = f"{path}/{DISKS}/{disk.file}"
            lock(fd, image, read_only=disk.read_only)
            opened.append(Disk(disk.name, disk.size, fd, image, disk.read_only))
            size = os.fstat(fd).st_size
            if size != disk.size:
                raise FormatError(f"{where} has {size} bytes, its disk {disk.size}")
        failed.pop_all()
    return tuple(opened)


def check_mappable(blocks: Sequence[RamBlock]) -> None:
    """Raise FormatError unless one process has address space for all RAM."""
    with ExitStack() as mapped:
        for index, block in enumerate(blocks):
            try:
                mapped.enter_context(mmap.mmap(block.fd, block.length, prot=mmap.PROT_READ))
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                message = f"blocks[{index}] of {block.length} bytes: no address space to map it"
                raise FormatError(message) from None


def read_state(folder: int, contents: Contents) -> DeviceState:
    """Return the state of all devices. Raises FormatError."""
    left = MAX_DEVICE_STATE
    read: dict[str, list[DeviceSection]] = {"early": [], "sections": []}
    with subfolder(folder, DEVICES) as devices:
        for member, found in read.items():
            for index, entry in enumerate(getattr(contents, member)):
                found.append(_read_section(devices, f"{member}[{index}]", entry, left))
                left -= len(found[-1].payload)
        bitmaps = _read_bitmaps(devices, contents.bitmaps)
    return DeviceState(
        early=tuple(read["early"]),
        sections=tuple(read["sections"]),
        description=contents.description,
        ram_section_id=contents.ram_section_id,
        bitmaps=bitmaps,
    )


def _read_bitmaps(devices: int, size: int) -> bytes:
    if not size:
        return b""
    where = f"file {BITMAPS!r}"
    with naming(where):
        data = files.read_file(devices, BITMAPS, MAX_BITMAPS)
    if len(data) != size:
        raise FormatError(f"{where} has {len(data)} bytes, not {size}")
    try:
        check_chunks(data)
    except StreamError as error:
        raise FormatError(f"{where}: {error.message}") from None
    return data


def _read_section(devices: int, where: str, entry: SectionFile, limit: int) -> DeviceSection:
    where = f"{where}.file {shown(entry.file)}"
    with naming(where):
        payload = files.read_file(devices, entry.file, limit)
    if entry.size is not None and entry.size != len(payload):
        raise FormatError(f"{where} has {len(payload)} bytes, its section {entry.size}")
    return DeviceSection(
        section_id=entry.section_id,
        name=entry.name,
        instance_id=entry.instance_id,
        version=entry.version,
        payload=payload,
    )
